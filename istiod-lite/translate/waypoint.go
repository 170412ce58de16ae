package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// protocolHBONE is the protocol of a waypoint's listener. It is Istio's word.
const protocolHBONE = "HBONE"

// addressHostname and addressIP are types of a Gateway's addresses.
const (
	addressHostname = "Hostname"
	addressIP       = "IPAddress"
)

// WaypointInput is a Gateway and what decides whether it is a waypoint that traffic can be sent to.
type WaypointInput struct {
	Gateway *cluster.Gateway
	// Class is the Gateway's, nil while it is not known.
	Class *cluster.GatewayClass
	// Service and Deployment are what was deployed for it, nil while it is not there.
	Service    *cluster.Service
	Deployment *cluster.Deployment
}

// Waypoint is a Gateway that is a waypoint.
type Waypoint struct {
	Key cluster.Key
	// For is the traffic that it is for: api.WaypointForService and so on.
	For string
	// Listener is the one that takes tunnels; nil if there is none.
	Listener *cluster.Listener
	// Unready says why no traffic can be sent to it, "" if it can.
	Unready string
	// Host and Addr are where it is: one of them.
	Host string
	Addr netip.Addr
}

// Equal reports whether both are the same to those who are bound to them; either may be nil.
func (w *Waypoint) Equal(o *Waypoint) bool {
	if w == nil || o == nil {
		return w == o
	}
	return w.Key == o.Key && w.For == o.For && w.Unready == o.Unready && w.Host == o.Host && w.Addr == o.Addr &&
		(w.Listener == nil) == (o.Listener == nil) && (w.Listener == nil || w.Listener.Equal(*o.Listener))
}

// Takes reports whether the waypoint is for a kind of traffic: api.WaypointForService or api.WaypointForWorkload.
func (w *Waypoint) Takes(traffic string) bool { return w.For == traffic || w.For == api.WaypointForAll }

// IsWaypoint reports whether a Gateway of a class, nil if that is not known, is a waypoint of this control plane.
func IsWaypoint(g *cluster.Gateway, class *cluster.GatewayClass) bool {
	return class != nil && class.Controller == api.ControllerWaypoint && (g.Revision == "" || g.Revision == api.RevisionDefault)
}

// IsWaypointListener reports whether a listener takes the tunnels of a waypoint.
func IsWaypointListener(l cluster.Listener) bool {
	return l.Port == api.PortHBONE && l.Protocol == protocolHBONE
}

// WaypointOf returns the waypoint that a Gateway is, nil if it is none. One is ready when a replica of its Deployment is, and
// stays so while that is to have any: if all of them are away for a while, traffic waits for them rather than goes around.
func WaypointOf(m Mesh, in WaypointInput) *Waypoint {
	g := in.Gateway
	if g == nil || !IsWaypoint(g, in.Class) {
		return nil
	}
	w := &Waypoint{Key: g.Key, For: g.WaypointFor}
	if w.For == "" {
		w.For = in.Class.WaypointFor
	}
	if w.For == "" {
		w.For = api.WaypointForService
	}
	if i := slices.IndexFunc(g.Listeners, IsWaypointListener); i >= 0 {
		w.Listener = &g.Listeners[i]
	}
	switch {
	case g.Deleting:
		w.Unready = "it is being deleted"
	case w.Listener == nil:
		w.Unready = fmt.Sprintf("it has no listener with protocol %s on port %d", protocolHBONE, api.PortHBONE)
	case len(g.Addresses) > 0:
		w.readAddress(g.Addresses[0])
	default:
		w.Host = Hostname(m, g.Key)
		w.Unready = unready(in)
	}
	return w
}

// readAddress takes the address of a waypoint that somebody else deploys.
func (w *Waypoint) readAddress(a cluster.GatewayAddress) {
	switch a.Type {
	case addressHostname:
		w.Host = a.Value
	case addressIP:
		addr, err := netip.ParseAddr(a.Value)
		if err != nil {
			w.Unready = fmt.Sprintf("its address %q is not an IP address", a.Value)
			return
		}
		w.Addr = addr.Unmap()
	default:
		w.Unready = fmt.Sprintf("its address is of type %q, which is not supported", a.Type)
	}
}

func unready(in WaypointInput) string {
	s, d := in.Service, in.Deployment
	switch {
	case s == nil || s.Gateway != in.Gateway.Name:
		return "its Service is not there yet"
	case len(s.ClusterIPs) == 0:
		return "its Service has no address yet"
	case d == nil || d.Deleting || d.Gateway != in.Gateway.Name:
		return "its Deployment is not there"
	case d.Replicas == 0:
		return "its Deployment is scaled to zero"
	case d.Ready == 0 && !in.Gateway.Programmed:
		return "no replica of its Deployment is ready yet"
	}
	return ""
}

// Address is how node proxies find the waypoint.
func (w *Waypoint) Address(m Mesh) *workload.GatewayAddress {
	out := &workload.GatewayAddress{HboneMtlsPort: api.PortHBONE}
	if w.Addr.IsValid() {
		out.Destination = &workload.GatewayAddress_Address{Address: &workload.NetworkAddress{Network: m.Network, Address: w.Addr.AsSlice()}}
	} else {
		out.Destination = &workload.GatewayAddress_Hostname{Hostname: &workload.NamespacedHostname{Namespace: w.Key.Namespace, Hostname: w.Host}}
	}
	return out
}

// Reasons of the condition api.ConditionWaypointBound. They are Istio's.
const (
	reasonBound       = "WaypointAccepted"
	reasonUnready     = "WaypointIsNotReady"
	reasonDenied      = "AttachmentDenied"
	reasonUnsupported = "UnsupportedTrafficType"
	reasonWeight      = "CanaryInvalidWeight"
	reasonSame        = "CanarySameAsPrimary"
)

// BindInput is what decides which waypoint the traffic of an object takes.
type BindInput struct {
	// Use is what the object says.
	Use       cluster.WaypointUse
	Namespace string
	// NamespaceObject is the object's namespace, nil while that is not known.
	NamespaceObject *cluster.Namespace
	// Traffic is api.WaypointForService or api.WaypointForWorkload.
	Traffic string
	// Required says that traffic takes the waypoint or is refused.
	Required bool
}

// Meant names the Gateway that the traffic is to take, and whether the object itself says so; the zero Key is none.
func (in BindInput) Meant() (key cluster.Key, own bool) {
	if in.Use.Name != "" {
		key, _ = in.Use.Key(in.Namespace)
		return key, true
	}
	if in.NamespaceObject != nil {
		key, _ = in.NamespaceObject.Waypoint.Key(in.Namespace)
	}
	return key, false
}

// canary is the second waypoint that the traffic of a service is to share: the object's, or its namespace's if that names the first too.
func (in BindInput) canary() (key cluster.Key, weight string, meant bool) {
	if in.Traffic != api.WaypointForService {
		return key, "", false
	}
	c := in.Use.Canary
	if c.Name == "" && in.Use.Name == "" && in.NamespaceObject != nil {
		c = in.NamespaceObject.Waypoint.Canary
	}
	key, meant = c.Key(in.Namespace)
	return key, c.Weight, meant
}

// Binding is a decision on the waypoint of an object.
type Binding struct {
	// Waypoint is told of the object's traffic, and serves it as soon as it is sent there; nil if none is.
	Waypoint *Waypoint
	// Address is where the traffic is sent, nil if it takes no waypoint.
	Address *workload.GatewayAddress
	// Canary is a second waypoint that is told of the traffic and serves it, nil if none is. Shares are those of both, none if all of the
	// traffic takes the one at Address.
	Canary *Waypoint
	Shares []*workload.WeightedWaypoint
	// Required says that the traffic is refused while Waypoint is not there to take it. Gateway is who it is meant for then.
	Required bool
	Gateway  cluster.Key
	// Reason and Message say what became of what the object or its namespace asked for; "" if they ask for nothing.
	Reason, Message string
}

// Bind decides. find looks up waypoints; it returns nil for a Gateway that is not there or is none.
func Bind(m Mesh, in BindInput, find func(cluster.Key) *Waypoint) Binding {
	key, own := in.Meant()
	if key == (cluster.Key{}) {
		return Binding{}
	}
	w := find(key)
	b := bind(m, in, key, own, w)
	if b.Reason == reasonBound {
		b.share(m, in, key, find)
	}
	if b.Reason == "" || b.Address != nil && !in.Required {
		return b
	}
	switch {
	case !in.Required:
		b.Message += "; traffic goes straight to the backends"
	case b.Address == nil:
		// Node proxies look for a waypoint that is not there, or does not take the traffic, and refuse.
		b.Address = (&Waypoint{Key: key, Host: Hostname(m, key)}).Address(m)
		b.Message += "; traffic is refused (annotation " + api.AnnotationWaypointRequired + ")"
	}
	b.Required, b.Gateway = in.Required, key
	return b
}

// Serves reports whether a waypoint is told of the traffic, and serves it.
func (b Binding) Serves(gateway cluster.Key) bool {
	return b.Waypoint != nil && b.Waypoint.Key == gateway || b.Canary != nil && b.Canary.Key == gateway
}

// share gives the canary its share of what takes the primary. One that cannot be used leaves all to that, and is told.
func (b *Binding) share(m Mesh, in BindInput, primary cluster.Key, find func(cluster.Key) *Waypoint) {
	key, text, meant := in.canary()
	if !meant {
		return
	}
	unusable := func(reason, message string) {
		b.Reason, b.Message = reason, fmt.Sprintf("all traffic takes waypoint %s, none its canary: %s", primary, message)
	}
	if key == primary {
		unusable(reasonSame, fmt.Sprintf("both are waypoint %s", key))
		return
	}
	weight, err := strconv.ParseUint(cmp.Or(text, "0"), 10, 8)
	if err != nil || weight > 100 {
		unusable(reasonWeight, fmt.Sprintf("annotation %s is %q: want a number from 0 to 100", api.AnnotationCanaryWeight, text))
		return
	}
	c := bind(m, in, key, true, find(key))
	b.Canary = c.Waypoint
	if c.Reason != reasonBound {
		unusable(c.Reason, c.Message)
		return
	}
	b.Shares = []*workload.WeightedWaypoint{{Destination: b.Address, Weight: 100 - uint32(weight)}, {Destination: c.Address, Weight: uint32(weight)}}
	b.Message = fmt.Sprintf("of its connections %d%% take waypoint %s, and %d%% its canary %s", 100-weight, primary, weight, key)
}

// bind decides without regard to what is done where there is no waypoint.
func bind(m Mesh, in BindInput, key cluster.Key, own bool, w *Waypoint) Binding {
	if w == nil {
		return Binding{Reason: reasonUnready, Message: fmt.Sprintf("there is no waypoint %s: no such Gateway, or not of a class of waypoints", key)}
	}
	if !w.Takes(in.Traffic) {
		if !own {
			return Binding{} // the namespace means others
		}
		return Binding{Reason: reasonUnsupported, Message: fmt.Sprintf("waypoint %s is for %q and not for %q; set label %s on the Gateway", key, w.For, in.Traffic, api.LabelWaypointFor)}
	}
	if w.Listener != nil {
		var labels cluster.Labels
		if in.NamespaceObject != nil {
			labels = in.NamespaceObject.Labels
		}
		if !w.Listener.Admits(key.Namespace, in.Namespace, labels) {
			return Binding{Reason: reasonDenied, Message: fmt.Sprintf("listener %s of waypoint %s does not allow namespace %s (allowedRoutes.namespaces: %s)",
				w.Listener.Name, key, in.Namespace, w.Listener.From)}
		}
	}
	if w.Unready != "" {
		return Binding{Waypoint: w, Reason: reasonUnready, Message: fmt.Sprintf("waypoint %s: %s", key, w.Unready)}
	}
	return Binding{Waypoint: w, Address: w.Address(m), Reason: reasonBound, Message: fmt.Sprintf("traffic takes waypoint %s", key)}
}

// status is the condition of an object that says what became of its waypoint.
func (b Binding) status(kind cluster.Kind, key cluster.Key, generation int64, seen cluster.Condition) Status {
	s := Status{Kind: kind, Key: key, Type: api.ConditionWaypointBound, Seen: seen}
	if b.Reason == "" {
		s.Gone = seen == cluster.Condition{}
		return s
	}
	s.Want = cluster.Condition{Type: s.Type, Status: "False", Reason: b.Reason, Message: b.Message, Generation: generation}
	if b.Reason == reasonBound {
		s.Want.Status = "True"
	}
	return s
}

// ServiceStatus says what became of the waypoint of a service.
func ServiceStatus(s *cluster.Service, b Binding) Status {
	return b.status(s.ObjectKind(), s.Key, s.Generation, s.Bound)
}

// EntryWaypointStatus says what became of the waypoint of a ServiceEntry.
func EntryWaypointStatus(e *cluster.ServiceEntry, b Binding) Status {
	return b.status(e.ObjectKind(), e.Key, e.Generation, e.Bound)
}

// WorkloadEntryWaypointStatus says what became of the waypoint of a WorkloadEntry.
func WorkloadEntryWaypointStatus(e *cluster.WorkloadEntry, b Binding) Status {
	return b.status(e.ObjectKind(), e.Key, e.Generation, e.Bound)
}

// ServiceBind is how a service is bound.
func ServiceBind(s *cluster.Service, ns *cluster.Namespace) BindInput {
	use := s.Waypoint
	if s.Gateway != "" {
		use = cluster.WaypointUse{Name: api.UseWaypointNone} // a waypoint takes none itself
	}
	return BindInput{use, s.Namespace, ns, api.WaypointForService, required(s.Required, ns)}
}

// required reports whether an object with this annotation requires its waypoint.
func required(annotation string, ns *cluster.Namespace) bool {
	if annotation == "" && ns != nil {
		annotation = ns.Required
	}
	return annotation == "true"
}

// Prefixes of the names of authorisations of services and ServiceEntries that require their waypoint. No object of Kubernetes has
// such a name.
const (
	requiredPrefix      = "waypoint_required_"
	requiredEntryPrefix = "waypoint_required_entry_"
)

func requiredName(o cluster.ObjectRef) string {
	if o.IsEntry() {
		return requiredEntryPrefix + o.Key.Name
	}
	return requiredPrefix + o.Key.Name
}

// RequiredName is the key of the authorisation by which the endpoints of a service, or of a ServiceEntry, let nobody in but its waypoint.
func RequiredName(o cluster.ObjectRef) string { return o.Key.Namespace + "/" + requiredName(o) }

// RequiredPolicy is that authorisation; nil if a waypoint is not required. The waypoint, and its canary, are known by the service account of its Gateway's
// name.
func RequiredPolicy(m Mesh, o cluster.ObjectRef, b Binding) *security.Authorization {
	if !b.Required {
		return nil
	}
	match := &security.Match{}
	gateways := []cluster.Key{b.Gateway}
	if b.Canary != nil {
		gateways = append(gateways, b.Canary.Key)
	}
	for _, domain := range m.trustDomains() {
		for _, g := range gateways {
			match.NotPrincipals = append(match.NotPrincipals, &security.StringMatch{MatchType: &security.StringMatch_Exact{
				Exact: domain + "/ns/" + g.Namespace + "/sa/" + g.Name}})
		}
	}
	return &security.Authorization{
		Name: requiredName(o), Namespace: o.Key.Namespace, Scope: security.Scope_WORKLOAD_SELECTOR, Action: security.Action_DENY,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{match}}}}},
	}
}

// EndpointOf is what a workload of a namespace is an endpoint of.
type EndpointOf struct {
	Namespace string
	Services  []*cluster.Service
	Entries   []EntryAttachment
}

// Policies names the authorisations of RequiredPolicy that the workload has to obey: those of its own namespace. Others may have it as
// an endpoint, and have no say in who reaches it.
func (e EndpointOf) Policies(service func(*cluster.Service) Binding, entry func(*cluster.ServiceEntry) Binding) []string {
	var out []string
	for _, s := range e.Services {
		if s.Namespace == e.Namespace && service(s).Required {
			out = append(out, RequiredName(cluster.ServiceRef(s.Key)))
		}
	}
	for _, at := range e.Entries {
		if at.Entry.Namespace == e.Namespace && entry(at.Entry).Required {
			out = append(out, RequiredName(cluster.EntryRef(at.Entry.Key)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ServicesOf are those of attachments.
func ServicesOf(attached []Attachment) []*cluster.Service {
	out := make([]*cluster.Service, 0, len(attached))
	for _, at := range attached {
		out = append(out, at.Service)
	}
	return out
}

// PodBind is how a pod is bound.
func PodBind(p *cluster.Pod, ns *cluster.Namespace) BindInput {
	use := cluster.UseOf(p.Labels)
	if p.Labels.Has(api.LabelGatewayManaged) || p.Labels.Has(api.LabelGatewayName) {
		use.Name = api.UseWaypointNone
	}
	return BindInput{use, p.Namespace, ns, api.WaypointForWorkload, false}
}

// EntryBind is how a ServiceEntry is bound.
func EntryBind(e *cluster.ServiceEntry, ns *cluster.Namespace) BindInput {
	return BindInput{e.Waypoint, e.Namespace, ns, api.WaypointForService, required(e.Required, ns)}
}

// WorkloadEntryBind is how a WorkloadEntry is bound.
func WorkloadEntryBind(e *cluster.WorkloadEntry, ns *cluster.Namespace) BindInput {
	return BindInput{cluster.UseOf(e.Labels), e.Namespace, ns, api.WaypointForWorkload, false}
}
