// Package kube connects a command to a cluster: from the usual flags and files to clients. It knows nothing of the mesh.
package kube

import (
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/cli/console"
)

// Requests that a command may send to the API server, per second and at once. client-go's default of 5 a second makes an
// install crawl.
const (
	requestRate  = 50
	requestBurst = 100
)

// Flags are the global flags that say which cluster. The zero value means what kubectl means without flags.
type Flags struct {
	// KubeConfig is the path of a kubeconfig file; empty: $KUBECONFIG, then ~/.kube/config, then the pod's own account.
	KubeConfig string
	// Context is a context of that file; empty: its current one.
	Context string
}

// Register adds the flags to a flag set.
func (f *Flags) Register(flags *pflag.FlagSet) {
	flags.StringVarP(&f.KubeConfig, "kubeconfig", "c", "", "kubeconfig file (default $KUBECONFIG, then ~/.kube/config)")
	flags.StringVar(&f.Context, "context", "", "context of the kubeconfig file (default its current one)")
}

// Cluster is a connection to a cluster. Its clients may be used concurrently.
type Cluster struct {
	// Getter makes further clients; Helm takes it.
	Getter     genericclioptions.RESTClientGetter
	Config     *rest.Config
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface
}

// Connect makes the clients. Namespace is where namespaced requests of Getter's clients go by default. It does not talk
// to the cluster yet, so an error is one of the files or flags.
func (f *Flags) Connect(namespace string) (*Cluster, error) {
	getter := genericclioptions.NewConfigFlags(true)
	getter.WithDiscoveryBurst(requestBurst).WithDiscoveryQPS(requestRate).WithWrapConfigFn(func(c *rest.Config) *rest.Config {
		c.QPS, c.Burst = requestRate, requestBurst
		c.UserAgent = "ambit"
		// Warnings of the API server concern whoever wrote an object; ours are tested for them.
		c.WarningHandler = rest.NoWarnings{}
		return c
	})
	if f.KubeConfig != "" {
		getter.KubeConfig = &f.KubeConfig
	}
	if f.Context != "" {
		getter.Context = &f.Context
	}
	getter.Namespace = &namespace
	config, err := getter.ToRESTConfig()
	if err != nil {
		return nil, console.Unreachable(fmt.Errorf("find the cluster: %w", err))
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	return &Cluster{Getter: getter, Config: config, Kubernetes: clients, Dynamic: dyn}, nil
}

// Version asks the API server for its version. It is the first request of a command, so that a cluster that cannot be
// reached is told as such.
func (c *Cluster) Version() (string, error) {
	v, err := c.Kubernetes.Discovery().ServerVersion()
	if err != nil {
		return "", console.Unreachable(fmt.Errorf("reach the cluster at %s: %w", c.Config.Host, err))
	}
	return v.GitVersion, nil
}
