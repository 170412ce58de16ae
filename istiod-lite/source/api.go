package source

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// API asks the API server itself, for answers that a watch may not have brought yet.
type API struct{ Core kubernetes.Interface }

// Pod returns a pod, or nil if there is none.
func (a API) Pod(ctx context.Context, key cluster.Key) (*cluster.Pod, error) {
	p, err := a.Core.CoreV1().Pods(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return cluster.PodOf(p), nil
}

// PodsOn lists the pods of a namespace that are bound to a node.
func (a API) PodsOn(ctx context.Context, node, namespace string) ([]*cluster.Pod, error) {
	list, err := a.Core.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(),
	})
	if err != nil {
		return nil, err
	}
	var out []*cluster.Pod
	for i := range list.Items {
		if p := cluster.PodOf(&list.Items[i]); p.Node == node {
			out = append(out, p)
		}
	}
	return out, nil
}

// Review asks whether a token is good for one of the audiences, and whose it is.
func (a API) Review(ctx context.Context, token string, audiences []string) (authenticationv1.TokenReviewStatus, error) {
	r, err := a.Core.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, err
	}
	return r.Status, nil
}
