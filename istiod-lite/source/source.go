// Package source watches the API server and posts what happens to one place. It is the front half of client-go's informers:
// reflectors, whose store is the receiver. Objects are reduced as they are decoded, so nothing here holds one, and a first list
// of 100,000 pods is streamed and never in memory as a whole.
package source

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Kinds are the kinds that are watched. Of each, a Replace or an Absent comes before anything that follows from it is known.
var Kinds = []cluster.Kind{
	cluster.KindConfigMap, cluster.KindNamespace, cluster.KindNode, cluster.KindService, cluster.KindEndpointSlice,
	cluster.KindPeerAuthentication, cluster.KindAuthorizationPolicy, cluster.KindRequestAuthentication, cluster.KindServiceEntry, cluster.KindWorkloadEntry,
	cluster.KindPod, cluster.KindDeployment, cluster.KindGateway, cluster.KindGatewayClass, cluster.KindMesh,
	cluster.KindHTTPRoute, cluster.KindGRPCRoute, cluster.KindTLSRoute, cluster.KindTCPRoute,
	cluster.KindDestinationRule, cluster.KindVirtualService,
	cluster.KindBackendTLSPolicy, cluster.KindBackendTraffic, cluster.KindBundle, cluster.KindTelemetry, cluster.KindWaypointPolicy,
}

// Config configures a Source. All fields are required.
type Config struct {
	Core    kubernetes.Interface
	Dynamic dynamic.Interface
	// Namespace is the control plane's, in which its settings are.
	Namespace string
	// Sink takes the events. It is called by one goroutine for each kind, and events of one object come in order.
	Sink func(cluster.Event)
	Log  *slog.Logger
}

// Source watches. Make one with New.
type Source struct {
	cfg Config

	mu     sync.Mutex // guards errors
	errors map[cluster.Kind]string
}

// New returns a Source that does nothing until Run.
func New(cfg Config) *Source { return &Source{cfg: cfg, errors: map[cluster.Kind]string{}} }

// Errors tells, for each kind that cannot be watched at present, why.
func (s *Source) Errors() map[cluster.Kind]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[cluster.Kind]string{}
	for k, v := range s.errors {
		out[k] = v
	}
	return out
}

// Run watches until ctx ends, trying again whatever fails.
func (s *Source) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, w := range s.watches() {
		wg.Go(func() { s.run(ctx, w) })
	}
	wg.Wait()
}

// watched is one kind and how to list and watch it.
type watched struct {
	kind cluster.Kind
	// example has the type of the objects as they are decoded.
	example runtime.Object
	convert func(runtime.Object) cluster.Object
	list    func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch   func(context.Context, metav1.ListOptions) (watch.Interface, error)
	// client tells the reflector whether it can stream lists.
	client any
	// optional kinds may not be known to the API server.
	optional bool
}

// Selectors that keep what is not needed from being sent at all.
const (
	// Pods that have ended have no address and ask for no certificate.
	livePods = "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)
	// Slices that Kubernetes makes from pods say nothing that the pods do not.
	slicesByHand = discoveryv1.LabelManagedBy + "!=endpointslice-controller.k8s.io"
	// Deployments of waypoints.
	managed = api.LabelGatewayManaged + "=" + api.GatewayManagedWaypoint
)

// Kinds of Istio's, of the Gateway API, and our own.
var (
	waypointPolicies       = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: v1alpha1.Resource}
	peerAuthentications    = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
	authorizationPolicies  = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	serviceEntries         = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
	gateways               = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	gatewayClasses         = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}
	httpRoutes             = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}
	grpcRoutes             = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "grpcroutes"}
	tlsRoutes              = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "tlsroutes"}
	tcpRoutes              = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "tcproutes"}
	backendTLSPolicies     = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "backendtlspolicies"}
	meshes                 = schema.GroupVersionResource{Group: "gateway.networking.x-k8s.io", Version: "v1alpha1", Resource: "xmeshes"}
	trafficPolicies        = schema.GroupVersionResource{Group: "gateway.networking.x-k8s.io", Version: "v1alpha1", Resource: "xbackendtrafficpolicies"}
	virtualServices        = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	destinationRules       = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "destinationrules"}
	telemetries            = schema.GroupVersionResource{Group: "telemetry.istio.io", Version: "v1", Resource: "telemetries"}
	workloadEntries        = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
	requestAuthentications = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "requestauthentications"}
)

func (s *Source) watches() []watched {
	core, discovery := s.cfg.Core.CoreV1(), s.cfg.Core.DiscoveryV1()
	settings := fields.OneTermEqualSelector(metav1.ObjectNameField, api.MeshConfigMap).String()
	of := func(w watched, kind cluster.Kind, example runtime.Object) watched {
		w.kind, w.example, w.client = kind, example, s.cfg.Core
		return w
	}
	return []watched{
		of(typed(core.ConfigMaps(s.cfg.Namespace), settings, "", cluster.ConfigMapOf), cluster.KindConfigMap, &corev1.ConfigMap{}),
		of(typed(core.Namespaces(), "", "", cluster.NamespaceOf), cluster.KindNamespace, &corev1.Namespace{}),
		of(typed(core.Nodes(), "", "", cluster.NodeOf), cluster.KindNode, &corev1.Node{}),
		of(typed(core.Services(metav1.NamespaceAll), "", "", cluster.ServiceOf), cluster.KindService, &corev1.Service{}),
		of(typed(discovery.EndpointSlices(metav1.NamespaceAll), "", slicesByHand, cluster.EndpointSliceOf), cluster.KindEndpointSlice, &discoveryv1.EndpointSlice{}),
		of(typed(core.Pods(metav1.NamespaceAll), livePods, "", cluster.PodOf), cluster.KindPod, &corev1.Pod{}),
		of(typed(s.cfg.Core.AppsV1().Deployments(metav1.NamespaceAll), "", managed, cluster.DeploymentOf), cluster.KindDeployment, &appsv1.Deployment{}),
		s.custom(peerAuthentications, cluster.KindPeerAuthentication, func(u *unstructured.Unstructured) cluster.Object { return cluster.PeerAuthenticationOf(u) }),
		s.custom(authorizationPolicies, cluster.KindAuthorizationPolicy, func(u *unstructured.Unstructured) cluster.Object { return cluster.AuthorizationPolicyOf(u) }),
		s.custom(requestAuthentications, cluster.KindRequestAuthentication, func(u *unstructured.Unstructured) cluster.Object {
			return cluster.RequestAuthenticationOf(u)
		}),
		s.custom(serviceEntries, cluster.KindServiceEntry, func(u *unstructured.Unstructured) cluster.Object { return cluster.ServiceEntryOf(u) }),
		s.custom(workloadEntries, cluster.KindWorkloadEntry, func(u *unstructured.Unstructured) cluster.Object { return cluster.WorkloadEntryOf(u) }),
		s.custom(gateways, cluster.KindGateway, func(u *unstructured.Unstructured) cluster.Object { return cluster.GatewayOf(u) }),
		s.custom(gatewayClasses, cluster.KindGatewayClass, func(u *unstructured.Unstructured) cluster.Object { return cluster.GatewayClassOf(u) }),
		s.custom(meshes, cluster.KindMesh, func(u *unstructured.Unstructured) cluster.Object { return cluster.MeshOf(u) }),
		s.custom(httpRoutes, cluster.KindHTTPRoute, func(u *unstructured.Unstructured) cluster.Object { return cluster.HTTPRouteOf(u) }),
		s.custom(grpcRoutes, cluster.KindGRPCRoute, func(u *unstructured.Unstructured) cluster.Object { return cluster.GRPCRouteOf(u) }),
		s.custom(tlsRoutes, cluster.KindTLSRoute, func(u *unstructured.Unstructured) cluster.Object { return cluster.TLSRouteOf(u) }),
		of(typed(core.ConfigMaps(metav1.NamespaceAll), "", "", cluster.BundleOf), cluster.KindBundle, &corev1.ConfigMap{}),
		s.custom(backendTLSPolicies, cluster.KindBackendTLSPolicy, func(u *unstructured.Unstructured) cluster.Object { return cluster.BackendTLSPolicyOf(u) }),
		s.custom(trafficPolicies, cluster.KindBackendTraffic, func(u *unstructured.Unstructured) cluster.Object { return cluster.BackendTrafficPolicyOf(u) }),
		s.custom(waypointPolicies, cluster.KindWaypointPolicy, func(u *unstructured.Unstructured) cluster.Object { return cluster.WaypointPolicyOf(u) }),
		s.custom(tcpRoutes, cluster.KindTCPRoute, func(u *unstructured.Unstructured) cluster.Object { return cluster.TCPRouteOf(u) }),
		s.custom(virtualServices, cluster.KindVirtualService, func(u *unstructured.Unstructured) cluster.Object { return cluster.VirtualServiceOf(u) }),
		s.custom(destinationRules, cluster.KindDestinationRule, func(u *unstructured.Unstructured) cluster.Object { return cluster.DestinationRuleOf(u) }),
		s.custom(telemetries, cluster.KindTelemetry, func(u *unstructured.Unstructured) cluster.Object { return cluster.TelemetryOf(u) }),
	}
}

// client is what the typed clients of a kind have in common.
type client[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// typed watches by a generated client, with a field and a label selector.
func typed[L, O runtime.Object, N cluster.Object](c client[L], fieldSelector, labelSelector string, reduce func(O) N) watched {
	selected := func(opts metav1.ListOptions) metav1.ListOptions {
		opts.FieldSelector, opts.LabelSelector = fieldSelector, labelSelector
		return opts
	}
	return watched{
		convert: func(o runtime.Object) cluster.Object { return reduce(o.(O)) },
		list: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			return c.List(ctx, selected(opts))
		},
		watch: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			return c.Watch(ctx, selected(opts))
		},
	}
}

// custom watches a kind that is defined by a CustomResourceDefinition. It is decoded loosely, so that an object that does
// not fit its type breaks itself only.
func (s *Source) custom(gvr schema.GroupVersionResource, kind cluster.Kind, reduce func(*unstructured.Unstructured) cluster.Object) watched {
	c := s.cfg.Dynamic.Resource(gvr)
	return watched{
		kind:     kind,
		example:  &unstructured.Unstructured{},
		convert:  func(o runtime.Object) cluster.Object { return reduce(o.(*unstructured.Unstructured)) },
		list:     func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, opts) },
		watch:    c.Watch,
		client:   s.cfg.Dynamic,
		optional: true,
	}
}

// retry paces attempts that fail. Its cap is also how late a kind is noticed whose definition comes after the start.
var retry = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 5 * time.Second}

func (s *Source) run(ctx context.Context, w watched) {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			o, err := w.list(ctx, opts)
			s.noteError(w, err)
			return o, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			i, err := w.watch(ctx, opts)
			s.noteError(w, err)
			return i, err
		},
	}
	quiet := logr.Discard() // noteError says what failed, once
	backoff := retry
	r := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, w.client), w.example,
		&feed{kind: w.kind, convert: w.convert, sink: s.cfg.Sink},
		cache.ReflectorOptions{Name: string(w.kind), Backoff: &backoff, Logger: &quiet})
	r.RunWithContext(ctx)
}

// noteError keeps the last error of a kind and logs it when it is another one than before. A kind that the API server does
// not know is empty, if it may be unknown. What was known of it before is kept: definitions go last, after their objects.
func (s *Source) noteError(w watched, err error) {
	absent := err != nil && w.optional && apierrors.IsNotFound(err)
	text := ""
	switch {
	case absent:
		text = "the API server does not know the kind; its CustomResourceDefinition may come later"
	case err != nil && !apierrors.IsResourceExpired(err):
		text = err.Error()
	}
	s.mu.Lock()
	before := s.errors[w.kind]
	if text == "" {
		delete(s.errors, w.kind)
	} else {
		s.errors[w.kind] = text
	}
	s.mu.Unlock()
	switch {
	case text == before:
		return
	case absent:
		s.cfg.Log.Info("kind is not there", "kind", w.kind, "cause", text)
		s.cfg.Sink(cluster.Event{Kind: w.kind, Op: cluster.Absent})
	case text != "":
		s.cfg.Log.Warn("cannot watch", "kind", w.kind, "cause", text)
	default:
		s.cfg.Log.Info("watching again", "kind", w.kind)
	}
}

// feed is the store of a reflector. It stores nothing: objects go on to the sink in their reduced form.
type feed struct {
	// Store stands for the methods that a reflector does not call; it is nil.
	cache.Store
	kind    cluster.Kind
	convert func(runtime.Object) cluster.Object
	sink    func(cluster.Event)
}

// Transformer makes the reflector reduce the objects of a streamed list one by one.
func (f *feed) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return f.reduce(o) }
}

func (f *feed) reduce(o any) (cluster.Object, error) {
	switch o := o.(type) {
	case cluster.Object:
		return o, nil
	case runtime.Object:
		return f.convert(o), nil
	}
	return nil, fmt.Errorf("watch %s: got a %T", f.kind, o)
}

func (f *feed) upsert(o any) error {
	reduced, err := f.reduce(o)
	if err != nil {
		return err
	}
	f.sink(cluster.Event{Kind: f.kind, Op: cluster.Upsert, Key: reduced.ObjectKey(), Object: reduced})
	return nil
}

func (f *feed) Add(o any) error    { return f.upsert(o) }
func (f *feed) Update(o any) error { return f.upsert(o) }

func (f *feed) Delete(o any) error {
	reduced, err := f.reduce(o)
	if err != nil {
		return err
	}
	f.sink(cluster.Event{Kind: f.kind, Op: cluster.Delete, Key: reduced.ObjectKey()})
	return nil
}

func (f *feed) Replace(list []any, _ string) error {
	objects := make([]cluster.Object, 0, len(list))
	for _, o := range list {
		reduced, err := f.reduce(o)
		if err != nil {
			return err
		}
		objects = append(objects, reduced)
	}
	f.sink(cluster.Event{Kind: f.kind, Op: cluster.Replace, Objects: objects})
	return nil
}

func (f *feed) Resync() error { return nil }
