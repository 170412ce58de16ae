// Package harness is how scenarios and the demo hold a cluster: its API, commands inside pods, packets on a node's link, rules
// in a pod's network namespace, waiting, and a look around when something failed. It asserts nothing and knows no test. It is
// for the two-node cluster that e2e/cluster makes; what needs only the API works with any other.
package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/api"
)

// Environment variables.
const (
	// EnvKubeconfig names the cluster to use; if unset, the repository's own is looked for.
	EnvKubeconfig = "AMBIT_KUBECONFIG"
	// EnvRequire, if not empty, makes a missing cluster an error where it would else be a reason to skip.
	EnvRequire = "AMBIT_REQUIRE_CLUSTER"
)

// ErrNoCluster is wrapped by Open's error if there is no cluster to use, as opposed to one that does not work.
var ErrNoCluster = errors.New("no cluster")

// Cluster is a running cluster. It may be used by several goroutines.
type Cluster struct {
	// Root is the repository, Kubeconfig the file that Config was read from.
	Root       string
	Kubeconfig string
	Config     *rest.Config
	Kube       kubernetes.Interface
	Dynamic    dynamic.Interface

	mapper meta.ResettableRESTMapper
}

// Pod names a pod.
type Pod struct{ Namespace, Name string }

// String is namespace/name.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Open finds the cluster and asks it for its version. The error wraps ErrNoCluster, and says what is missing and how to get it, if
// there is none.
func Open(ctx context.Context) (*Cluster, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	path := os.Getenv(EnvKubeconfig)
	if path == "" {
		path = filepath.Join(root, ".cache", "cluster", "kubeconfig")
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w: %s does not exist; `make cluster-up` makes one, or set %s", ErrNoCluster, path, EnvKubeconfig)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: not root, and packets on the nodes' links can be seen by root only", ErrNoCluster)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("open the cluster: read %s: %w", path, err)
	}
	config.QPS, config.Burst = 100, 200 // scenarios run side by side
	c := &Cluster{Root: root, Kubeconfig: path, Config: config}
	if c.Kube, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("open the cluster: %w", err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("open the cluster: %w", err)
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Kube.Discovery()))
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return nil, fmt.Errorf("%w: %s names one that does not answer (%w); `make cluster-up` starts it", ErrNoCluster, path, err)
	}
	return c, nil
}

// Root is the repository: the nearest folder above the working directory with a go.mod of the main module.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		raw, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(raw), "module github.com/ambit-mesh/ambit\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find the repository: not inside it")
		}
		dir = filepath.Dir(dir)
	}
}

// Get returns a pod.
func (c *Cluster) Get(ctx context.Context, pod Pod) (*corev1.Pod, error) {
	return c.Kube.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
}

// Pods returns the pods of a namespace that match a label selector; an empty one matches all.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list pods of %s: %w", namespace, err)
	}
	return list.Items, nil
}

// PodOn returns the running pod with that label on a node, e.g. the ztunnel of node1. A pod that is being ended does not count.
func (c *Cluster) PodOn(ctx context.Context, node, namespace, selector string) (*corev1.Pod, error) {
	pods, err := c.Pods(ctx, namespace, selector)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pod := &pods[i]; pod.Spec.NodeName == node && pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning {
			return pod, nil
		}
	}
	return nil, fmt.Errorf("no pod %s of %s runs on %s", selector, namespace, node)
}

// Families returns the address families of the cluster's pods, the first one first: those of the pods of its name server.
func (c *Cluster) Families(ctx context.Context) ([]corev1.IPFamily, error) {
	pods, err := c.Pods(ctx, "kube-system", "k8s-app=kube-dns")
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		var families []corev1.IPFamily
		for _, ip := range pod.Status.PodIPs {
			family := corev1.IPv4Protocol
			if addr, err := netip.ParseAddr(ip.IP); err != nil {
				return nil, fmt.Errorf("address of pod %s/%s: %w", pod.Namespace, pod.Name, err)
			} else if addr.Is6() {
				family = corev1.IPv6Protocol
			}
			families = append(families, family)
		}
		if len(families) > 0 {
			return families, nil
		}
	}
	return nil, errors.New("find the cluster's address families: no pod k8s-app=kube-dns in kube-system has an address")
}

// LabelNamespace sets a label of a namespace, or removes it if value is empty.
func (c *Cluster) LabelNamespace(ctx context.Context, namespace, label, value string) error {
	var v any
	if value != "" {
		v = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{label: v}}})
	if err != nil {
		return err
	}
	_, err = c.Kube.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("label namespace %s %s=%s: %w", namespace, label, value, err)
	}
	return nil
}

// Enrol labels a namespace so that its pods are to be captured; Unenrol takes the label away. Neither waits.
func (c *Cluster) Enrol(ctx context.Context, namespace string) error {
	return c.LabelNamespace(ctx, namespace, api.LabelDataplaneMode, api.DataplaneModeAmbient)
}

// Unenrol takes the label away.
func (c *Cluster) Unenrol(ctx context.Context, namespace string) error {
	return c.LabelNamespace(ctx, namespace, api.LabelDataplaneMode, "")
}
