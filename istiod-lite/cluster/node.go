package cluster

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api"
)

// labelSubzone is Istio's label for the third level of locality, which Kubernetes has none for.
const labelSubzone = "topology.istio.io/subzone"

// Node is a node.
type Node struct {
	Name     string
	Locality Locality
	// Addrs are the node's own addresses, inside and outside the cluster.
	Addrs []netip.Addr
}

// Locality is where a node is.
type Locality struct{ Region, Zone, Subzone string }

// ObjectKind is KindNode.
func (*Node) ObjectKind() Kind { return KindNode }

// ObjectKey is the name alone.
func (n *Node) ObjectKey() Key { return Key{Name: n.Name} }

// Equal reports whether both are the same in every field.
func (n *Node) Equal(o *Node) bool {
	return n.Name == o.Name && n.Locality == o.Locality && slices.Equal(n.Addrs, o.Addrs)
}

// NodeOf reduces a Kubernetes node.
func NodeOf(in *corev1.Node) *Node {
	n := &Node{Name: in.Name, Locality: Locality{
		Region:  firstOf(in.Labels, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaRegion),
		Zone:    firstOf(in.Labels, corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaZone),
		Subzone: in.Labels[labelSubzone],
	}}
	for _, a := range in.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		if addr, fault := parseAddr("", a.Address); fault == "" && !slices.Contains(n.Addrs, addr) {
			n.Addrs = append(n.Addrs, addr)
		}
	}
	return n
}

func firstOf(m map[string]string, names ...string) string {
	for _, n := range names {
		if v := m[n]; v != "" {
			return v
		}
	}
	return ""
}

// Namespace is a namespace.
type Namespace struct {
	Name string
	// Terminating namespaces take no new object.
	Terminating bool
	// Distribution is api.AnnotationTrafficDistribution, the default of the namespace's services.
	Distribution string
	// Network is api.LabelNetwork, which has a meaning on the control plane's namespace only.
	Network string
	// Labels are all of the namespace's: listeners of Gateways select namespaces by them.
	Labels Labels
	// Waypoint is what they say of the waypoint of objects that say nothing themselves.
	Waypoint WaypointUse
	// Required is api.AnnotationWaypointRequired, for services that have none.
	Required string
}

// ObjectKind is KindNamespace.
func (*Namespace) ObjectKind() Kind { return KindNamespace }

// ObjectKey is the name alone.
func (n *Namespace) ObjectKey() Key { return Key{Name: n.Name} }

// Equal reports whether both are the same in every field.
func (n *Namespace) Equal(o *Namespace) bool {
	return n.Name == o.Name && n.Terminating == o.Terminating && n.Distribution == o.Distribution && n.Network == o.Network && n.Waypoint == o.Waypoint && n.Required == o.Required && n.Labels.Equal(o.Labels)
}

// NamespaceOf reduces a Kubernetes namespace.
func NamespaceOf(in *corev1.Namespace) *Namespace {
	return &Namespace{
		Name:         in.Name,
		Terminating:  in.Status.Phase == corev1.NamespaceTerminating || in.DeletionTimestamp != nil,
		Distribution: in.Annotations[api.AnnotationTrafficDistribution],
		Network:      in.Labels[api.LabelNetwork],
		Labels:       LabelsOf(in.Labels),
		Waypoint:     waypointUseOf(in.Labels, in.Annotations),
		Required:     in.Annotations[api.AnnotationWaypointRequired],
	}
}

// ConfigMap is one key of a config map that the control plane reads.
type ConfigMap struct {
	Key
	Data map[string]string
}

// ObjectKind is KindConfigMap.
func (*ConfigMap) ObjectKind() Kind { return KindConfigMap }

// ObjectKey is namespace and name.
func (c *ConfigMap) ObjectKey() Key { return c.Key }

// ConfigMapOf reduces a Kubernetes config map.
func ConfigMapOf(in *corev1.ConfigMap) *ConfigMap {
	return &ConfigMap{Key: Key{in.Namespace, in.Name}, Data: in.Data}
}
