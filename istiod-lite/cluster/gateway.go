package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
)

// Gateway is a Gateway. Those of the mesh's class are waypoints.
type Gateway struct {
	Key
	UID        string
	Created    time.Time
	Generation int64
	// Deleting gateways have been asked to go.
	Deleting bool
	Class    string
	// Revision is api.LabelRevision: which control plane is meant.
	Revision string
	// WaypointFor is api.LabelWaypointFor, "" if the class decides.
	WaypointFor string
	Listeners   []Listener
	// Addresses are spec.addresses: somebody else deploys what they lead to.
	Addresses []GatewayAddress
	// Labels and Annotations are for what is deployed: those of spec.infrastructure.
	Labels, Annotations map[string]string
	// Parameters is spec.infrastructure.parametersRef, nil if there is none.
	Parameters *gatewayv1.LocalParametersReference
	// Programmed tells that the status has addresses: the gateway was ready once.
	Programmed bool
	// Status stands for what status says: another one after each change of it.
	Status StatusHash
	Faults []string
}

// Listener is one listener of a Gateway.
type Listener struct {
	Name     string
	Port     int32
	Protocol string
	Hostname string
	TLS      bool
	// From says whose objects may be bound to the listener: Same, All, Selector or None.
	From string
	// Selector picks namespaces, with From Selector; nil picks none.
	Selector labels.Selector
	// Kinds are spec's allowedRoutes.kinds, as group/kind; the group is never empty.
	Kinds []string
}

// GatewayAddress is one of spec.addresses: Type is IPAddress, Hostname or another one.
type GatewayAddress struct{ Type, Value string }

// ObjectKind is KindGateway.
func (*Gateway) ObjectKind() Kind { return KindGateway }

// ObjectKey is namespace and name.
func (g *Gateway) ObjectKey() Key { return g.Key }

// Equal reports whether both are the same in every field.
func (g *Gateway) Equal(o *Gateway) bool {
	return g.Key == o.Key && g.UID == o.UID && g.Created.Equal(o.Created) && g.Generation == o.Generation && g.Deleting == o.Deleting &&
		g.Class == o.Class && g.Revision == o.Revision && g.WaypointFor == o.WaypointFor &&
		slices.EqualFunc(g.Listeners, o.Listeners, Listener.Equal) && slices.Equal(g.Addresses, o.Addresses) &&
		maps.Equal(g.Labels, o.Labels) && maps.Equal(g.Annotations, o.Annotations) &&
		(g.Parameters == nil) == (o.Parameters == nil) && (g.Parameters == nil || *g.Parameters == *o.Parameters) &&
		g.Programmed == o.Programmed && g.Status == o.Status && slices.Equal(g.Faults, o.Faults)
}

// Equal reports whether both are the same in every field.
func (l Listener) Equal(o Listener) bool {
	return l.Name == o.Name && l.Port == o.Port && l.Protocol == o.Protocol && l.Hostname == o.Hostname && l.TLS == o.TLS &&
		l.From == o.From && (l.Selector == nil) == (o.Selector == nil) && (l.Selector == nil || l.Selector.String() == o.Selector.String()) &&
		slices.Equal(l.Kinds, o.Kinds)
}

// Admits reports whether objects of a namespace may be bound to a listener of a gateway in the namespace own; labels are those
// of the first namespace.
func (l Listener) Admits(own, namespace string, ls Labels) bool {
	switch gatewayv1.FromNamespaces(l.From) {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return own == namespace
	case gatewayv1.NamespacesFromSelector:
		return l.Selector != nil && l.Selector.Matches(ls)
	}
	return false
}

// GatewayOf reduces a Gateway. One that cannot be read has no listeners, and binds nobody.
func GatewayOf(in *unstructured.Unstructured) *Gateway {
	g := &Gateway{
		Key: Key{in.GetNamespace(), in.GetName()}, UID: string(in.GetUID()), Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(),
		Deleting: in.GetDeletionTimestamp() != nil, Revision: in.GetLabels()[api.LabelRevision], WaypointFor: in.GetLabels()[api.LabelWaypointFor],
		Status: statusHashOf(in),
	}
	addresses, _, _ := unstructured.NestedSlice(in.Object, "status", "addresses")
	g.Programmed = len(addresses) > 0
	var spec gatewayv1.GatewaySpec
	if g.Faults = looseSpec(in, &spec); len(g.Faults) > 0 {
		return g
	}
	g.Class = string(spec.GatewayClassName)
	for _, a := range spec.Addresses {
		typ := string(gatewayv1.IPAddressType)
		if a.Type != nil {
			typ = string(*a.Type)
		}
		g.Addresses = append(g.Addresses, GatewayAddress{typ, a.Value})
	}
	if infra := spec.Infrastructure; infra != nil {
		g.Parameters = infra.ParametersRef
		for k, v := range infra.Labels {
			set(&g.Labels, string(k), string(v))
		}
		for k, v := range infra.Annotations {
			set(&g.Annotations, string(k), string(v))
		}
	}
	for _, l := range spec.Listeners {
		g.addListener(l)
	}
	return g
}

func set(m *map[string]string, k, v string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[k] = v
}

func (g *Gateway) addListener(in gatewayv1.Listener) {
	l := Listener{Name: string(in.Name), Port: int32(in.Port), Protocol: string(in.Protocol), TLS: in.TLS != nil, From: string(gatewayv1.NamespacesFromSame)}
	if in.Hostname != nil {
		l.Hostname = string(*in.Hostname)
	}
	if allowed := in.AllowedRoutes; allowed != nil {
		if n := allowed.Namespaces; n != nil {
			if n.From != nil {
				l.From = string(*n.From)
			}
			if n.Selector != nil {
				selector, err := metav1.LabelSelectorAsSelector(n.Selector)
				if err != nil {
					g.Faults = append(g.Faults, fmt.Sprintf("spec.listeners: %s: allowedRoutes.namespaces.selector: %v", in.Name, err))
				} else {
					l.Selector = selector
				}
			}
		}
		for _, k := range allowed.Kinds {
			group := gatewayv1.GroupName
			if k.Group != nil {
				group = string(*k.Group)
			}
			l.Kinds = append(l.Kinds, group+"/"+string(k.Kind))
		}
	}
	g.Listeners = append(g.Listeners, l)
}

// looseSpec decodes the spec of an object of the Gateway API. What it does not know is nothing to it: a newer definition may
// have more fields.
func looseSpec(in *unstructured.Unstructured, into any) []string {
	spec, _, err := unstructured.NestedMap(in.Object, "spec")
	if err == nil {
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(spec, into)
	}
	if err != nil {
		return []string{"spec: " + err.Error()}
	}
	return nil
}

// GatewayClass is a GatewayClass.
type GatewayClass struct {
	Name       string
	Generation int64
	Controller string
	// WaypointFor is api.LabelWaypointFor, "" for the default.
	WaypointFor string
	// Parameters tells that spec.parametersRef is there.
	Parameters bool
	Status     StatusHash
	Faults     []string
}

// ObjectKind is KindGatewayClass.
func (*GatewayClass) ObjectKind() Kind { return KindGatewayClass }

// ObjectKey is the name alone.
func (c *GatewayClass) ObjectKey() Key { return Key{Name: c.Name} }

// Equal reports whether both are the same in every field.
func (c *GatewayClass) Equal(o *GatewayClass) bool {
	return c.Name == o.Name && c.Generation == o.Generation && c.Controller == o.Controller && c.WaypointFor == o.WaypointFor &&
		c.Parameters == o.Parameters && c.Status == o.Status && slices.Equal(c.Faults, o.Faults)
}

// GatewayClassOf reduces a GatewayClass.
func GatewayClassOf(in *unstructured.Unstructured) *GatewayClass {
	c := &GatewayClass{Name: in.GetName(), Generation: in.GetGeneration(), WaypointFor: in.GetLabels()[api.LabelWaypointFor], Status: statusHashOf(in)}
	var spec gatewayv1.GatewayClassSpec
	if c.Faults = looseSpec(in, &spec); len(c.Faults) > 0 {
		return c
	}
	c.Controller, c.Parameters = string(spec.ControllerName), spec.ParametersRef != nil
	return c
}

// Mesh is an XMesh: the Gateway API's object for a mesh as a whole.
type Mesh struct {
	Name       string
	Generation int64
	Controller string
	// Parameters is spec.parametersRef as people write it, "" if there is none.
	Parameters string
	Status     StatusHash
}

// ObjectKind is KindMesh.
func (*Mesh) ObjectKind() Kind { return KindMesh }

// ObjectKey is the name alone.
func (m *Mesh) ObjectKey() Key { return Key{Name: m.Name} }

// Equal reports whether both are the same in every field.
func (m *Mesh) Equal(o *Mesh) bool { return *m == *o }

// MeshOf reduces an XMesh.
func MeshOf(in *unstructured.Unstructured) *Mesh {
	m := &Mesh{Name: in.GetName(), Generation: in.GetGeneration(), Status: statusHashOf(in)}
	m.Controller, _, _ = unstructured.NestedString(in.Object, "spec", "controllerName")
	if ref, ok, _ := unstructured.NestedMap(in.Object, "spec", "parametersRef"); ok {
		text := func(field string) string { s, _ := ref[field].(string); return s }
		m.Parameters = strings.Trim(text("group")+"/"+text("kind")+" "+strings.TrimPrefix(text("namespace")+"/"+text("name"), "/"), "/")
	}
	return m
}

// WaypointUse is what an object says of the waypoint that its traffic takes. The zero WaypointUse says nothing.
type WaypointUse struct {
	// Name is the Gateway's, api.UseWaypointNone for no waypoint.
	Name string
	// Namespace is the Gateway's, "" for that of the object.
	Namespace string
	// Canary is a second one, for a share of the traffic of services.
	Canary Canary
}

// Canary is a waypoint that takes a share of the traffic. The zero Canary is none.
type Canary struct {
	Name, Namespace string
	// Weight is what the object says of the share: per cent, "" for none yet.
	Weight string
}

// Keys name the Gateways that are meant by an object of a namespace: none, one, or the canary's too.
func (u WaypointUse) Keys(namespace string) []Key {
	var out []Key
	if k, ok := u.Key(namespace); ok {
		out = append(out, k)
	}
	if k, ok := u.Canary.Key(namespace); ok {
		out = append(out, k)
	}
	return out
}

// Key names the Gateway that is meant by an object of a namespace; false if none is.
func (c Canary) Key(namespace string) (Key, bool) {
	return Key{cmp.Or(c.Namespace, namespace), c.Name}, c.Name != ""
}

// UseOf reads the labels of an object or, if that says nothing, of its namespace.
func UseOf(ls Labels) WaypointUse {
	name := ls.Get(api.LabelUseWaypoint)
	if name == "" {
		return WaypointUse{}
	}
	return WaypointUse{Name: name, Namespace: ls.Get(api.LabelUseWaypointNamespace)}
}

// Key names the Gateway that is meant by an object of a namespace; false if none is.
func (u WaypointUse) Key(namespace string) (Key, bool) {
	if u.Name == "" || u.Name == api.UseWaypointNone {
		return Key{}, false
	}
	return Key{cmp.Or(u.Namespace, namespace), u.Name}, true
}

// waypointUseOf is UseOf for labels that are not kept, with the canary that they and annotations name.
func waypointUseOf(labels, annotations map[string]string) WaypointUse {
	out := WaypointUse{Canary: canaryOf(labels[api.LabelUseWaypointCanary], labels[api.LabelUseWaypointCanaryNamespace], annotations)}
	if out.Name = labels[api.LabelUseWaypoint]; out.Name != "" {
		out.Namespace = labels[api.LabelUseWaypointNamespace]
	}
	return out
}

func canaryOf(name, namespace string, annotations map[string]string) Canary {
	if name == "" {
		return Canary{}
	}
	return Canary{name, namespace, annotations[api.AnnotationCanaryWeight]}
}
