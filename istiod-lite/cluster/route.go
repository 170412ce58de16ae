package cluster

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
)

// Route is a route of the Gateway API: an HTTPRoute, GRPCRoute, TLSRoute or TCPRoute, in a form that they share.
type Route struct {
	Key
	// Kind is which of them it is.
	Kind       Kind
	Created    time.Time
	Generation int64
	// Parents are what the route is attached to, those that the mesh does not answer for included.
	Parents []RouteParent
	// Hostnames are spec.hostnames, lower case. Those of HTTPRoutes and GRPCRoutes have no meaning for services; of a TLSRoute one that
	// is malformed is "", and its rules are at fault.
	Hostnames []string
	// Rules are in the order of spec.rules. A route that cannot be read has one that matches everything and is at fault.
	Rules []RouteRule
	// Seen are the entries of status.parents that carry the controller name of routes of services.
	Seen []ParentStatus
}

// ParentStatus is what a route says of one of its parents, or a policy of one of what it is for.
type ParentStatus struct {
	// Ref is spec.parentRefs' own words.
	Ref gatewayv1.ParentReference
	// Conditions are sorted by type.
	Conditions []Condition
}

// Equal reports whether both say the same.
func (p ParentStatus) Equal(o ParentStatus) bool {
	return reflect.DeepEqual(p.Ref, o.Ref) && slices.Equal(p.Conditions, o.Conditions)
}

// Fault is something in an object that makes a part of it useless.
type Fault struct {
	// Incompatible says that what stands there does not go together; otherwise it is a value that is malformed or not supported.
	Incompatible bool
	// Message names the field and says what is wrong with it.
	Message string
}

// ObjectRef names an object that a route refers to. The zero ObjectRef is none.
type ObjectRef struct {
	// Group is "" for Kubernetes' core group.
	Group string
	Kind  Kind
	Key   Key
}

// String returns "Kind namespace/name".
func (r ObjectRef) String() string { return string(r.Kind) + " " + r.Key.String() }

// Compare orders references by group, kind and name.
func (r ObjectRef) Compare(o ObjectRef) int {
	return cmp.Or(strings.Compare(r.Group, o.Group), strings.Compare(string(r.Kind), string(o.Kind)), r.Key.Compare(o.Key))
}

// Of reports whether r is of a kind in a group.
func (r ObjectRef) Of(group string, kind Kind) bool { return r.Group == group && r.Kind == kind }

// Groups of kinds that routes refer to.
const (
	GroupCore            = ""
	GroupGateway         = gatewayv1.GroupName
	GroupIstioNetworking = "networking.istio.io"
)

// ServiceRef names a Kubernetes service.
func ServiceRef(k Key) ObjectRef { return ObjectRef{GroupCore, KindService, k} }

// EntryRef names a ServiceEntry.
func EntryRef(k Key) ObjectRef { return ObjectRef{GroupIstioNetworking, KindServiceEntry, k} }

// GatewayRef names a Gateway.
func GatewayRef(k Key) ObjectRef { return ObjectRef{GroupGateway, KindGateway, k} }

// IsGateway reports whether r names a Gateway.
func (r ObjectRef) IsGateway() bool { return r.Of(GroupGateway, KindGateway) }

// IsService reports whether r names a Kubernetes service.
func (r ObjectRef) IsService() bool { return r.Of(GroupCore, KindService) }

// IsEntry reports whether r names a ServiceEntry.
func (r ObjectRef) IsEntry() bool { return r.Of(GroupIstioNetworking, KindServiceEntry) }

// RouteParent is one of a route's parents.
type RouteParent struct {
	// Ref is the object, its namespace filled in.
	Ref ObjectRef
	// Port and Section pick ports of it, by number and name; zero picks all.
	Port    uint16
	Section string
	// Written is spec.parentRefs' own words, which status has to repeat.
	Written gatewayv1.ParentReference
}

// Mesh reports whether the parent is a service, for which the mesh answers, and no Gateway or something else.
func (p RouteParent) Mesh() bool { return p.Ref.IsService() || p.Ref.IsEntry() }

// Picks reports whether the parent means a port of the object.
func (p RouteParent) Picks(port ServicePort) bool {
	return (p.Port == 0 || p.Port == port.Port) && (p.Section == "" || p.Section == port.Name)
}

// RouteRule is one rule of a route.
type RouteRule struct {
	// Name may be empty.
	Name string
	// Matches are what the rule is about: one of them. A rule that was written without any has one that matches everything; one
	// whose matches are all malformed has none. TLSRoutes and TCPRoutes have the first kind.
	Matches  []RouteMatch
	Filters  RouteFilters
	Backends []RouteBackend
	// Timeout is for a request with all its tries, TryTimeout for each of them; zero is without limit.
	Timeout, TryTimeout time.Duration
	// Retry is nil if the rule does not speak of it.
	Retry *RouteRetry
	// Session keeps clients with one endpoint; nil if the rule does not ask for it.
	Session *Session
	// Faults are why the rule cannot be executed. What it still matches must not be answered as if there were no such rule.
	Faults []Fault
}

// Session is how a client's requests are kept together.
type Session struct {
	// Name is that of the cookie or header field; "" if it was not said.
	Name string
	// Header: a header field instead of a cookie.
	Header bool
	// Lifetime is how long a cookie lasts; 0 for the client's session.
	Lifetime time.Duration
}

// RouteMatch is what a request has to have, all of it.
type RouteMatch struct {
	Path PathMatch
	// GRPC is that of a GRPCRoute, whose Path is unset.
	GRPC GRPCMatch
	// Method is an HTTP method, "" for any.
	Method string
	// Headers have names in lower case, each once. Query is of parameters by name, each once.
	Headers, Query []ValueMatch
}

// PathKind says how a path is compared.
type PathKind uint8

// The kinds of path matches.
const (
	// PathAny matches every path.
	PathAny PathKind = iota
	PathExact
	// PathPrefix compares segments: /v2 stands for /v2 and /v2/x and not for /v2x. The value has no slash at its end.
	PathPrefix
	// PathRegex is an RE2 expression for the whole path without its query.
	PathRegex
)

// PathMatch is a match of a path.
type PathMatch struct {
	Kind  PathKind
	Value string
}

// GRPCMatch matches the parts of a gRPC path; an empty one matches any.
type GRPCMatch struct {
	Service, Method string
	// Regex says that both are RE2 expressions for a whole part.
	Regex bool
}

// ValueMatch matches the value of something that has a name.
type ValueMatch struct {
	Name, Value string
	// Regex says that Value is an RE2 expression for the whole value.
	Regex bool
}

// RouteFilters are what is done to requests and answers. Each part is nil or empty if nothing is.
type RouteFilters struct {
	Request, Response *HeaderChanges
	Redirect          *Redirect
	Rewrite           *Rewrite
	CORS              *CORS
	Mirrors           []Mirror
}

// HeaderChanges change headers: removal first, then what is set replaces what is there, and what is added comes beside it.
type HeaderChanges struct {
	Set, Add []Header
	// Remove are names in lower case.
	Remove []string
}

// Header is a name, in lower case, and a value.
type Header struct{ Name, Value string }

// PathChangeKind says how a path is changed.
type PathChangeKind uint8

// The kinds of path changes.
const (
	PathKept PathChangeKind = iota
	// PathReplaced puts another path in the place of the whole.
	PathReplaced
	// PathPrefixReplaced puts another prefix in the place of the one that was matched.
	PathPrefixReplaced
)

// PathChange changes a path.
type PathChange struct {
	Kind  PathChangeKind
	Value string
}

// Redirect answers with another place.
type Redirect struct {
	// Scheme is http or https, "" for that of the request; Hostname "" is that of the request.
	Scheme, Hostname string
	// Port is 0 if it follows from the scheme, or is the parent's where that is not given either.
	Port uint16
	Path PathChange
	// Status is 301, 302, 303, 307 or 308.
	Status int
}

// Rewrite changes a request before it is sent on.
type Rewrite struct {
	// Hostname is "" if it is kept.
	Hostname string
	Path     PathChange
}

// CORS is what browsers are told of other origins.
type CORS struct {
	// Origins are without the default port of their scheme; "*" alone is all of them.
	Origins []string
	// Methods, Headers and Exposed may be "*" alone.
	Methods, Headers, Exposed []string
	Credentials               bool
	MaxAge                    time.Duration
}

// Mirror sends copies of requests to somebody whose answers nobody reads.
type Mirror struct {
	Backend BackendRef
	// PerMillion is how many of a million requests are copied.
	PerMillion uint32
}

// BackendRef is where requests are sent.
type BackendRef struct {
	Ref ObjectRef
	// Port is that of the service; 0 if none was given.
	Port uint16
}

// RouteBackend is a backend and its share.
type RouteBackend struct {
	BackendRef
	// Weight is the share, of the sum of all.
	Weight  uint32
	Filters RouteFilters
}

// RouteRetry is when and how often requests are tried again.
type RouteRetry struct {
	// Codes are status codes, sorted.
	Codes []uint32
	// Attempts are those after the first; nil if it was not said.
	Attempts *uint32
	// Backoff is the least time between two tries; 0 if it was not said.
	Backoff time.Duration
}

// ObjectKind is which kind of route it is.
func (r *Route) ObjectKind() Kind { return r.Kind }

// ObjectKey is namespace and name.
func (r *Route) ObjectKey() Key { return r.Key }

// Equal reports whether both are the same in every field.
func (r *Route) Equal(o *Route) bool {
	a, b := *r, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return r.Created.Equal(o.Created) && reflect.DeepEqual(a, b)
}

// Backends lists what the route refers to, mirrors included, each once, in order.
func (r *Route) Backends() []BackendRef {
	var out []BackendRef
	add := func(b BackendRef) {
		if !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	mirrors := func(f RouteFilters) {
		for _, m := range f.Mirrors {
			add(m.Backend)
		}
	}
	for _, rule := range r.Rules {
		mirrors(rule.Filters)
		for _, b := range rule.Backends {
			add(b.BackendRef)
			mirrors(b.Filters)
		}
	}
	return out
}

// routeOf reduces what all kinds of routes have in common. Spec is where to decode spec to, and common gives parts of it after
// that. The faults are fields that are not known, by the index of the rule that has them. The result is false for a route that
// could not be read.
func routeOf(kind Kind, in *unstructured.Unstructured, spec any, common func() (gatewayv1.CommonRouteSpec, []gatewayv1.Hostname, int)) (*Route, map[int][]Fault, bool) {
	r := &Route{
		Key: Key{in.GetNamespace(), in.GetName()}, Kind: kind,
		Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(), Seen: parentsOf(in),
	}
	body, _ := in.Object["spec"].(map[string]any)
	err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(body, spec, true)
	strict, unknown := runtime.AsStrictDecodingError(err)
	if err != nil && !unknown {
		r.Rules = []RouteRule{{Matches: []RouteMatch{{}}, Faults: []Fault{{Message: "spec: " + explain(body, spec, err).Error()}}}}
		r.readParents(looseParents(body))
		return r, nil, false
	}
	c, hostnames, rules := common()
	r.readParents(c.ParentRefs)
	for _, h := range hostnames {
		r.Hostnames = append(r.Hostnames, strings.ToLower(string(h)))
	}
	if !unknown {
		return r, nil, true
	}
	faults := map[int][]Fault{}
	for _, e := range strict.Errors() {
		path := strings.Trim(strings.TrimPrefix(e.Error(), "unknown field "), `"`)
		f := Fault{Message: fmt.Sprintf("spec.%s is not known to this release", path)}
		var i int
		if n, _ := fmt.Sscanf(path, "rules[%d]", &i); n == 1 {
			faults[i] = append(faults[i], f)
			continue
		}
		for i := range rules { // it may change what any of them means
			faults[i] = append(faults[i], f)
		}
	}
	return r, faults, true
}

// explain returns an error that names the field because of which body could not be decoded; err names none.
func explain(body map[string]any, spec any, err error) error {
	text, failed := json.Marshal(body)
	if failed != nil {
		return err
	}
	if named := json.Unmarshal(text, spec); named != nil {
		return named
	}
	return err
}

// looseParents reads the parents of a route whose spec cannot be read as a whole, so that it can be told to them.
func looseParents(spec map[string]any) []gatewayv1.ParentReference {
	var parents gatewayv1.CommonRouteSpec
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(map[string]any{"parentRefs": spec["parentRefs"]}, &parents); err != nil {
		return nil
	}
	return parents.ParentRefs
}

func (r *Route) readParents(in []gatewayv1.ParentReference) {
	for _, p := range in {
		out := RouteParent{
			Ref:     ObjectRef{Group: GroupGateway, Kind: KindGateway, Key: Key{r.Namespace, string(p.Name)}},
			Written: p,
		}
		if p.Group != nil {
			out.Ref.Group = groupOf(*p.Group)
		}
		if p.Kind != nil {
			out.Ref.Kind = Kind(*p.Kind)
		}
		if p.Namespace != nil {
			out.Ref.Key.Namespace = string(*p.Namespace)
		}
		if p.Port != nil {
			out.Port, _ = parsePort("", *p.Port) // the API server lets ports only pass
		}
		if p.SectionName != nil {
			out.Section = string(*p.SectionName)
		}
		r.Parents = append(r.Parents, out)
	}
}

// groupOf reads a group. People write "core" for Kubernetes' own, whose name is empty; the mesh pages of the Gateway API do.
func groupOf(g gatewayv1.Group) string {
	if g == "core" {
		return GroupCore
	}
	return string(g)
}

// parentsOf reads the entries of status.parents that are the mesh's own. What cannot be read is as if it were not there, and is
// written anew.
func parentsOf(in *unstructured.Unstructured) []ParentStatus {
	status, _ := in.Object["status"].(map[string]any)
	var read gatewayv1.RouteStatus
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(status, &read); err != nil {
		return nil
	}
	var out []ParentStatus
	for _, p := range read.Parents {
		if p.ControllerName != api.ControllerWaypoint {
			continue
		}
		out = append(out, ParentStatus{Ref: p.ParentRef, Conditions: conditionsOf(p.Conditions)})
	}
	return out
}

// conditionsOf reads conditions, sorted by type.
func conditionsOf(in []metav1.Condition) []Condition {
	var out []Condition
	for _, c := range in {
		out = append(out, Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message, Generation: c.ObservedGeneration})
	}
	slices.SortFunc(out, func(a, b Condition) int { return strings.Compare(a.Type, b.Type) })
	return out
}
