package check

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

var authorizationPolicies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

// mostPolicies is how many policies are named one by one.
const mostPolicies = 20

// policies names the AuthorizationPolicies that mean at layer 4 something else than they say: with HTTP attributes, with an
// action of layer 7, or malformed. A waypoint's are none of them.
func (c *checker) policies() {
	list, err := c.listPolicies()
	if apierrors.IsNotFound(err) {
		c.ok("AuthorizationPolicies: the kind is not there")
		return
	}
	if err != nil {
		c.unseen(fmt.Errorf("list AuthorizationPolicies: %w", err))
		return
	}
	namespaces, err := c.cluster.Kubernetes.CoreV1().Namespaces().List(c.ctx, metav1.ListOptions{LabelSelector: api.LabelDataplaneMode + "=" + api.DataplaneModeAmbient})
	if err != nil {
		c.unseen(fmt.Errorf("list namespaces: %w", err))
		return
	}
	enrolled := map[string]bool{}
	for _, ns := range namespaces.Items {
		enrolled[ns.Name] = true
	}
	root := survey.Settings(c.ctx, c.cluster.Kubernetes, c.mesh).RootNamespace
	looked, other := 0, 0
	for i := range list {
		u := &list[i]
		if c.only != "" && u.GetNamespace() != c.only && u.GetNamespace() != root {
			continue
		}
		looked++
		p := authz.Read(u.GetNamespace(), u.GetName(), u.GetAnnotations(), u.Object["spec"])
		condition := p.Condition()
		if p.Attached {
			verdict := p.AtWaypoints()
			condition.Accepted, condition.Message = verdict.Whole, verdict.Message
		}
		if condition.Accepted {
			continue
		}
		if other++; other > mostPolicies {
			continue
		}
		where := "as soon as namespace " + p.Namespace + " is enrolled"
		switch {
		case p.Attached:
			where = "at waypoints"
		case p.Namespace == root:
			where = "for all pods of the mesh"
		case enrolled[p.Namespace]:
			where = "in namespace " + p.Namespace
		}
		c.warn(fmt.Sprintf("kubectl -n %s edit authorizationpolicy %s", p.Namespace, p.Name), "AuthorizationPolicy %s/%s does not mean what it says %s: %s", p.Namespace, p.Name, where, condition.Message)
	}
	switch {
	case other > mostPolicies:
		c.warn("ambit check -n NAMESPACE looks at one namespace", "AuthorizationPolicies that do not mean what they say: %d more", other-mostPolicies)
	case other == 0:
		c.ok("AuthorizationPolicies: %d, none of which means anything else than it says", looked)
	}
}

func (c *checker) listPolicies() ([]unstructured.Unstructured, error) {
	var out []unstructured.Unstructured
	options := metav1.ListOptions{Limit: 500}
	for {
		list, err := c.cluster.Dynamic.Resource(authorizationPolicies).List(c.ctx, options)
		if err != nil {
			return nil, err
		}
		out = append(out, list.Items...)
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return out, nil
		}
	}
}
