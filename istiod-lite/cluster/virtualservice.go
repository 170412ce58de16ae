package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	networkingv1 "istio.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/mesh/authz"
)

// VirtualService is what waypoints take of one: the fault that it injects. Where requests go is said by routes of the Gateway API.
type VirtualService struct {
	Key
	Created    time.Time
	Generation int64
	// Hosts are names of services as ShortHost has them.
	Hosts []string
	// Fault is nil if none is injected.
	Fault *Injection
	// Faults are what is not in force, each named by its field.
	Faults []string
	// Seen is the condition of the type authz.WaypointConditionType.
	Seen Condition
}

// Injection is a fault that requests meet on purpose.
type Injection struct {
	// Delay is how long DelayPerMillion of a million requests are held back; 0 for none.
	Delay           time.Duration
	DelayPerMillion uint32
	// Status is what AbortPerMillion of a million requests are answered, GRPC the status of gRPC in its place; 0 and nil for none.
	Status          uint32
	GRPC            *uint32
	AbortPerMillion uint32
	// Match is what requests must have, all of it, for the fault to be for them.
	Match []FaultMatch
}

// FaultMatch is a condition on a header field, or on :method, :authority or :path, which has the query too.
type FaultMatch struct {
	Name string
	// How Value is compared with what the request has.
	How   MatchKind
	Value string
	// Not inverts the condition; a field that is not there meets it then.
	Not bool
}

// MatchKind says how two values are compared.
type MatchKind uint8

// The kinds of comparisons.
const (
	// MatchPresent: any value will do.
	MatchPresent MatchKind = iota
	MatchExact
	MatchPrefix
	// MatchRegex: Value is an RE2 expression for the whole value.
	MatchRegex
)

// ObjectKind is KindVirtualService.
func (*VirtualService) ObjectKind() Kind { return KindVirtualService }

// ObjectKey is namespace and name.
func (v *VirtualService) ObjectKey() Key { return v.Key }

// Equal reports whether both are the same in every field.
func (v *VirtualService) Equal(o *VirtualService) bool {
	a, b := *v, *o
	a.Created, b.Created = time.Time{}, time.Time{}
	return v.Created.Equal(o.Created) && reflect.DeepEqual(a, b)
}

// CompareVirtualServices is the order among those for the same host: the oldest counts, then the first by name.
func CompareVirtualServices(a, b *VirtualService) int {
	return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key))
}

// readVirtualService are the fields that are read, by message.
var readVirtualService = readTable{
	"VirtualService":           "hosts gateways http",
	"HTTPRoute":                "name match route fault",
	"HTTPMatchRequest":         "name uri method authority headers without_headers stat_prefix",
	"HTTPFaultInjection":       "delay abort",
	"HTTPFaultInjection.Delay": "percent percentage fixed_delay",
	"HTTPFaultInjection.Abort": "percentage http_status grpc_status",
}

// VirtualServiceOf reduces a VirtualService. One that cannot be read has no hosts, and so is for nobody.
func VirtualServiceOf(in *unstructured.Unstructured) *VirtualService {
	v := &VirtualService{
		Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(),
		Seen: seenBy(in, authz.WaypointConditionType),
	}
	var spec networkingv1.VirtualService
	f := &fields{}
	if !f.read(in, &spec, readVirtualService) {
		v.Faults = f.faults
		return v
	}
	for i, h := range spec.GetHosts() {
		host, fault := parseHost(fmt.Sprintf("spec.hosts[%d]:", i), h, false)
		if fault != "" {
			f.faults = append(f.faults, fault+" of one service")
		} else if parts := strings.SplitN(host, ".", 3); len(parts) == 3 && parts[1] != v.Namespace && (parts[2] == "svc" || strings.HasPrefix(parts[2], "svc.")) {
			f.add(fmt.Sprintf("spec.hosts[%d]", i), "%s is a service of another namespace, whose VirtualServices alone are looked at", host)
		} else if host = ShortHost(host, v.Namespace); !slices.Contains(v.Hosts, host) {
			v.Hosts = append(v.Hosts, host)
		}
	}
	inMesh := len(spec.GetGateways()) == 0 || slices.Contains(spec.GetGateways(), "mesh")
	if len(spec.GetGateways()) > 1 || !inMesh {
		f.add("spec.gateways", "only mesh is supported")
	}
	for i, r := range spec.GetHttp() {
		at := fmt.Sprintf("spec.http[%d]", i)
		if len(r.GetRoute()) > 0 && !v.toItself(r.GetRoute()) {
			f.add(at+".route", "is not supported: where requests go is said by HTTPRoutes and GRPCRoutes")
		}
		if i > 0 && r.GetFault() != nil {
			f.add(at+".fault", "only that of the first entry of spec.http is supported")
		}
	}
	if all := spec.GetHttp(); len(all) > 0 && all[0].GetFault() != nil && inMesh {
		v.Fault = f.fault("spec.http[0].fault", all[0].GetFault())
		if v.Fault != nil && !f.faultMatch("spec.http[0].match", all[0].GetMatch(), v.Fault) {
			v.Fault = nil // it must not be for more requests than was meant
		}
	}
	v.Faults = f.faults
	return v
}

// ShortHost makes one of all names of a Kubernetes service, in lower case, that a namespace has: "name.namespace". Other names stay.
func ShortHost(host, namespace string) string {
	parts := strings.SplitN(host, ".", 3)
	switch {
	case len(parts) == 1:
		return host + "." + namespace
	case len(parts) == 3 && (parts[2] == "svc" || strings.HasPrefix(parts[2], "svc.")):
		return parts[0] + "." + parts[1]
	}
	return host
}

// toItself reports whether requests go where they would go anyway: to the service that the VirtualService is for.
func (v *VirtualService) toItself(all []*networkingv1.HTTPRouteDestination) bool {
	if len(all) != 1 {
		return false
	}
	d := all[0].GetDestination()
	return d.GetSubset() == "" && d.GetPort() == nil && all[0].GetHeaders() == nil && slices.Contains(v.Hosts, ShortHost(strings.ToLower(d.GetHost()), v.Namespace))
}

// fault reads a fault; nil if it says nothing that can be done.
func (f *fields) fault(at string, in *networkingv1.HTTPFaultInjection) *Injection {
	out := &Injection{}
	if d := in.GetDelay(); d != nil {
		out.Delay = f.duration(at+".delay.fixedDelay", d.GetFixedDelay())
		//lint:ignore SA1019 people still write it in this older form
		out.DelayPerMillion = f.share(at+".delay.percentage", d.GetPercentage(), d.GetPercent())
		if out.Delay == 0 {
			f.add(at+".delay.fixedDelay", "required")
		}
	}
	if a := in.GetAbort(); a != nil {
		out.AbortPerMillion = f.share(at+".abort.percentage", a.GetPercentage(), 0)
		switch {
		case a.GetGrpcStatus() != "":
			i := slices.Index(grpcNames[:], strings.ToUpper(a.GetGrpcStatus()))
			if i <= 0 {
				f.add(at+".abort.grpcStatus", "%q is no status of gRPC that says of a failure", a.GetGrpcStatus())
				break
			}
			code := uint32(i)
			out.GRPC = &code
		case a.GetHttpStatus() < 200 || a.GetHttpStatus() > 599:
			f.add(at+".abort.httpStatus", "200 to 599, not %d", a.GetHttpStatus())
		default:
			out.Status = uint32(a.GetHttpStatus())
		}
	}
	if out.Delay == 0 && out.Status == 0 && out.GRPC == nil {
		return nil
	}
	return out
}

// grpcNames are the statuses of gRPC, by number (google.rpc.Code).
var grpcNames = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// share reads a percentage, of which the older form has no fractions, as a number of requests of a million.
func (f *fields) share(at string, in *networkingv1.Percent, whole int32) uint32 {
	percent := float64(whole)
	if in != nil {
		percent = in.GetValue()
	}
	if !(percent >= 0 && percent <= 100) {
		f.add(at, "0 to 100, not %v", percent)
		return 0
	}
	return uint32(math.Round(percent * 10_000))
}

// faultMatch reads what requests a fault is for. It returns false if that cannot be said to waypoints.
func (f *fields) faultMatch(at string, in []*networkingv1.HTTPMatchRequest, out *Injection) bool {
	if len(in) == 0 {
		return true
	}
	if len(in) > 1 {
		f.add(at, "a fault for one of several matches is not supported, so it is not injected")
		return false
	}
	m, before := in[0], len(f.faults)
	at += "[0]"
	if m.GetScheme() != nil || m.GetPort() != 0 || len(m.GetSourceLabels()) > 0 || len(m.GetGateways()) > 0 || len(m.GetQueryParams()) > 0 ||
		m.GetIgnoreUriCase() || m.GetSourceNamespace() != "" {
		f.add(at, "has what is not supported, so the fault is not injected")
	}
	f.condition(at+".uri", ":path", m.GetUri(), out)
	f.condition(at+".method", ":method", m.GetMethod(), out)
	f.condition(at+".authority", ":authority", m.GetAuthority(), out)
	for _, name := range slices.Sorted(maps.Keys(m.GetHeaders())) {
		f.header(at+".headers."+name, name, m.GetHeaders()[name], false, out)
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetWithoutHeaders())) {
		f.header(at+".withoutHeaders."+name, name, m.GetWithoutHeaders()[name], true, out)
	}
	return len(f.faults) == before
}

func (f *fields) header(at, name string, in *networkingv1.StringMatch, not bool, out *Injection) {
	if !httpguts.ValidHeaderFieldName(name) {
		f.add(at, "is no name of a header field")
		return
	}
	f.condition(at, strings.ToLower(name), in, out)
	if n := len(out.Match); n > 0 && not {
		out.Match[n-1].Not = true
	}
}

// condition adds a condition. That on a path is for all but the query, which Istio compares on its own.
func (f *fields) condition(at, name string, in *networkingv1.StringMatch, out *Injection) {
	if in == nil && strings.HasPrefix(name, ":") {
		return
	}
	m := FaultMatch{Name: name}
	switch t := in.GetMatchType().(type) {
	case *networkingv1.StringMatch_Exact:
		m.How, m.Value = MatchExact, t.Exact
		if name == ":path" {
			m.How, m.Value = MatchRegex, regexp.QuoteMeta(t.Exact)+`(\?.*)?`
		}
	case *networkingv1.StringMatch_Prefix:
		m.How, m.Value = MatchPrefix, t.Prefix
		if t.Prefix == "" {
			m.How = MatchPresent
		}
	case *networkingv1.StringMatch_Regex:
		m.How, m.Value = MatchRegex, t.Regex
		if _, err := regexp.Compile(t.Regex); err != nil || t.Regex == "" {
			f.add(at, "%q is no expression", t.Regex)
			return
		}
		if name == ":path" {
			m.Value = "(?:" + t.Regex + `)(\?.*)?`
		}
	}
	out.Match = append(out.Match, m)
}
