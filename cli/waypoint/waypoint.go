// Package waypoint is `ambit waypoint`: it makes, shows and removes waypoints, which are Gateways of class istio-waypoint, and
// says what keeps traffic from going through one. The control plane runs what a Gateway asks for; this command writes nothing but
// Gateways and, where asked, a namespace's label.
package waypoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/kube"
)

const (
	// defaultName is the name of a waypoint where none is given.
	defaultName = "waypoint"
	// defaultTimeout is how long a waypoint may take to be programmed.
	defaultTimeout = 90 * time.Second
	// poll is how often the cluster is asked while waiting.
	poll = 500 * time.Millisecond
)

// New makes the command.
func New(env *command.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "waypoint",
		Aliases: []string{"waypoints", "wp"},
		Short:   "Make, show and remove waypoints, which handle HTTP for services",
		Long: `Makes, shows and removes waypoints: proxies that route, change and judge requests for the services that are bound to them. A
waypoint is a Gateway of class istio-waypoint; services, or all of a namespace, are bound by the label istio.io/use-waypoint.`,
		Example: `  ambit waypoint apply -n shop --enroll-namespace --wait
  ambit waypoint status -A`,
		Args: command.Commands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(applyCommand(env), generateCommand(env), listCommand(env), statusCommand(env), deleteCommand(env))
	return cmd
}

// options are the flags that several of the commands have.
type options struct {
	env       *command.Env
	namespace string
	all       bool // namespaces
	format    string
	revision  string
	timeout   time.Duration
	asks      bool // node proxies for connections
}

func (o *options) namespaceFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.namespace, "namespace", "n", "", "namespace of the waypoint (default that of the kubeconfig's context)")
}

func (o *options) allFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "waypoints of all namespaces")
}

// check refuses flags that do not go together, or whose values mean nothing.
func (o *options) check() error {
	if o.all && o.namespace != "" {
		return console.Usagef("give one of -n and -A")
	}
	return console.CheckFormat(o.format)
}

func (o *options) formatFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "json or yaml")
}

func (o *options) revisionFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.revision, "revision", "r", "", "the control plane that the waypoint is for, where there are several")
}

func (o *options) timeoutFlag(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&o.timeout, "waypoint-timeout", defaultTimeout, "how long a waypoint may take to be ready")
}

// session is a connection to the cluster for one command.
type session struct {
	*options
	cluster *kube.Cluster
	mesh    string          // namespace of the mesh
	classes map[string]bool // GatewayClasses of waypoints
}

// open connects, and makes sure that the Gateway API is there.
func (o *options) open(ctx context.Context) (*session, error) {
	cluster, _, err := o.env.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if o.namespace == "" && !o.all {
		o.namespace = cluster.Namespace
	}
	s := &session{options: o, cluster: cluster}
	if s.classes, err = classesOf(ctx, cluster); err != nil {
		return nil, err
	}
	namespace, parts, err := o.env.FindMesh(ctx, cluster)
	if err != nil {
		return nil, err
	}
	s.mesh = namespace
	if len(parts) == 0 {
		o.env.Notef("Note: no mesh is installed in this cluster, so nothing runs what a waypoint asks for. Install it:  ambit install")
	}
	return s, nil
}

// classesOf returns the GatewayClasses of waypoints, or ErrNoKinds.
func classesOf(ctx context.Context, cluster *kube.Cluster) (map[string]bool, error) {
	list, err := cluster.Dynamic.Resource(gatewayClasses).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, ErrNoKinds
	}
	if err != nil {
		return nil, fmt.Errorf("list GatewayClasses: %w", err)
	}
	classes := map[string]bool{api.ClassWaypoint: true}
	for _, class := range list.Items {
		if controller, _, _ := unstructured.NestedString(class.Object, "spec", "controllerName"); controller == api.ControllerWaypoint {
			classes[class.GetName()] = true
		}
	}
	return classes, nil
}

// Survey returns the waypoints of a namespace, or of all if that is empty, for the mesh that is installed in another one, and
// advice about labels that name none. The error is ErrNoKinds where the cluster does not know Gateways.
func Survey(ctx context.Context, cluster *kube.Cluster, mesh, namespace string) ([]Waypoint, []Advice, error) {
	s := &session{options: &options{namespace: namespace, all: namespace == ""}, cluster: cluster, mesh: mesh}
	var err error
	if s.classes, err = classesOf(ctx, cluster); err != nil {
		return nil, nil, err
	}
	found, err := s.find(ctx)
	if err != nil {
		return nil, nil, err
	}
	waypoints, f, err := s.describeAll(ctx, found)
	if err != nil {
		return nil, nil, err
	}
	return waypoints, f.dangling(), nil
}

// ErrNoKinds says that the Gateway API is not there.
var ErrNoKinds = errors.New("the cluster does not know the kinds of the Gateway API, in which waypoints and routes are written: " +
	"ambit install brings them, unless it is given --skip-crds")

var (
	gateways       = resource(gatewayv1.GroupName, "v1", "gateways")
	gatewayClasses = resource(gatewayv1.GroupName, "v1", "gatewayclasses")
)

// listPage is how many objects one request asks for.
const listPage = 500

// each lists a resource page by page. A kind that the cluster does not know has no objects.
func each(ctx context.Context, client dynamic.ResourceInterface, selector string, f func(*unstructured.Unstructured)) error {
	options := metav1.ListOptions{LabelSelector: selector, Limit: listPage}
	for {
		list, err := client.List(ctx, options)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range list.Items {
			f(&list.Items[i])
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

// find returns the waypoints of the chosen namespace, or of all, by namespace and name.
func (s *session) find(ctx context.Context) ([]*gatewayv1.Gateway, error) {
	var found []*gatewayv1.Gateway
	var failed error
	err := each(ctx, s.cluster.Dynamic.Resource(gateways).Namespace(s.namespace), "", func(u *unstructured.Unstructured) {
		gateway, err := decode(u)
		if err != nil {
			failed = errors.Join(failed, err)
			return
		}
		if s.classes[string(gateway.Spec.GatewayClassName)] {
			found = append(found, gateway)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list Gateways: %w", err)
	}
	slices.SortFunc(found, func(a, b *gatewayv1.Gateway) int { return nameOf(a).compare(nameOf(b)) })
	return found, failed
}

// get returns one waypoint. A Gateway of another class is an error.
func (s *session) get(ctx context.Context, name string) (*gatewayv1.Gateway, error) {
	u, err := s.cluster.Dynamic.Resource(gateways).Namespace(s.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	gateway, err := decode(u)
	if err != nil {
		return nil, err
	}
	if !s.classes[string(gateway.Spec.GatewayClassName)] {
		return nil, fmt.Errorf("%s/%s is a Gateway of class %s, not a waypoint", s.namespace, name, gateway.Spec.GatewayClassName)
	}
	return gateway, nil
}

func decode(u *unstructured.Unstructured) (*gatewayv1.Gateway, error) {
	gateway := &gatewayv1.Gateway{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, gateway); err != nil {
		return nil, fmt.Errorf("read Gateway %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	return gateway, nil
}

// resource is a shorter way to name one.
func resource(group, version, plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: plural}
}
