// Package kube connects a command to a cluster: from the usual flags and files to clients. It knows nothing of the mesh.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
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

// answerTimeout bounds the first request of a command, so that it does not hang on a cluster that is away.
const answerTimeout = 15 * time.Second

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
	// Namespace is the one that the kubeconfig's context names, else default, as kubectl has it.
	Namespace string

	context string // of the kubeconfig; empty in a pod
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
	raw, err := getter.ToRawKubeConfigLoader().RawConfig()
	switch inPod := os.Getenv("KUBERNETES_SERVICE_HOST") != ""; {
	case err != nil || inPod:
	case len(raw.Clusters) == 0:
		err = errors.New("there is no kubeconfig: name one by --kubeconfig or $KUBECONFIG")
	case raw.CurrentContext == "" && f.Context == "":
		err = errors.New("the kubeconfig has no current context: name one by --context")
	}
	if err != nil {
		return nil, console.Unreachable(fmt.Errorf("find the cluster: %w", err))
	}
	config, err := getter.ToRESTConfig()
	if err != nil {
		return nil, console.Unreachable(fmt.Errorf("find the cluster: %w (kubectl config get-contexts lists what there is)", err))
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	cluster := &Cluster{
		Getter: getter, Config: config, Kubernetes: clients, Dynamic: dyn,
		Namespace: metav1.NamespaceDefault, context: cmp.Or(f.Context, raw.CurrentContext),
	}
	if named := raw.Contexts[cluster.context]; named != nil && named.Namespace != "" {
		cluster.Namespace = named.Namespace
	}
	return cluster, nil
}

// Version asks the API server for its version. It is the first request of a command, so that a cluster that cannot be
// reached is told as such, within answerTimeout.
func (c *Cluster) Version(ctx context.Context) (string, error) {
	late := fmt.Errorf("no answer in %v", answerTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, late)
	defer cancel()
	v, err := discovery.ToServerVersionInterfaceWithContext(c.Kubernetes.Discovery()).ServerVersionWithContext(ctx)
	if err != nil {
		if errors.Is(context.Cause(ctx), late) {
			err = late
		}
		return "", console.Unreachable(c.explain(err))
	}
	return v.GitVersion, nil
}

// explain says which cluster it was that did not give an answer, and how to mean another one.
func (c *Cluster) explain(err error) error {
	var inURL *url.Error // which repeats the address
	if errors.As(err, &inURL) {
		err = inURL.Err
	}
	where := c.Config.Host
	if c.context != "" {
		where += fmt.Sprintf(" (context %s)", c.context)
	}
	if apierrors.IsUnauthorized(err) {
		return fmt.Errorf("the cluster at %s does not know your credentials: %w; log in again, or name another context by --context", where, err)
	}
	return fmt.Errorf("reach the cluster at %s: %w; is it up, and the one you mean? --kubeconfig and --context name another", where, err)
}
