package plugin

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/cni/enrolment"
)

// cluster reads objects' metadata, which is all that decides about a pod that has a network namespace of its own.
type cluster struct{ client metadata.Interface }

// OpenCluster returns access to the API by a kubeconfig file.
func OpenCluster(kubeconfig string) (Objects, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the plugin's kubeconfig: %w", err)
	}
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("use the plugin's kubeconfig: %w", err)
	}
	return cluster{client}, nil
}

func (c cluster) Pod(ctx context.Context, namespace, name string) (string, enrolment.Pod, error) {
	pod, err := c.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace(namespace).
		Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", enrolment.Pod{}, err
	}
	return string(pod.UID), enrolment.Pod{Namespace: namespace, Labels: pod.Labels, Annotations: pod.Annotations}, nil
}

func (c cluster) NamespaceLabels(ctx context.Context, name string) (map[string]string, error) {
	n, err := c.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return n.Labels, nil
}
