package cluster

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// WorkloadEntry is a workload outside Kubernetes, such as a virtual machine.
type WorkloadEntry struct {
	Key
	Created    time.Time
	Generation int64
	// Labels are those of the object and, where it has none of that name, of its spec.
	Labels Labels
	EntryEndpoint
	// Seen is the condition that the object has of the type that the control plane writes.
	Seen Condition
	// Bound is the condition api.ConditionWaypointBound.
	Bound  Condition
	Faults []string
}

// EntryEndpoint is where a WorkloadEntry, or an endpoint of a ServiceEntry, is.
type EntryEndpoint struct {
	// Addr is invalid, and Host set, for an endpoint that is named by DNS. Neither is set for one that is malformed.
	Addr netip.Addr
	Host string
	// Ports map port names of services to ports, sorted by name.
	Ports []NamedPort
	// Network is another one than the cluster's; "" for that.
	Network  string
	Locality Locality
	// Weight is its share of traffic; 0 means 1.
	Weight         uint32
	ServiceAccount string
	// Tunnel is the value of api.LabelTunnel among the endpoint's own labels.
	Tunnel string
}

// ObjectKind is KindWorkloadEntry.
func (*WorkloadEntry) ObjectKind() Kind { return KindWorkloadEntry }

// ObjectKey is namespace and name.
func (w *WorkloadEntry) ObjectKey() Key { return w.Key }

// Equal reports whether both are the same in every field.
func (w *WorkloadEntry) Equal(o *WorkloadEntry) bool {
	return w.Key == o.Key && w.Created.Equal(o.Created) && w.Labels.Equal(o.Labels) && w.Generation == o.Generation && w.Seen == o.Seen && w.Bound == o.Bound &&
		w.EntryEndpoint.Equal(o.EntryEndpoint) && slices.Equal(w.Faults, o.Faults)
}

// Equal reports whether both are the same in every field.
func (e EntryEndpoint) Equal(o EntryEndpoint) bool {
	return e.Addr == o.Addr && e.Host == o.Host && slices.Equal(e.Ports, o.Ports) && e.Network == o.Network &&
		e.Locality == o.Locality && e.Weight == o.Weight && e.ServiceAccount == o.ServiceAccount && e.Tunnel == o.Tunnel
}

// Port returns the endpoint's port of that name.
func (e EntryEndpoint) Port(name string) (uint16, bool) {
	for _, p := range e.Ports {
		if p.Name == name {
			return p.Port, true
		}
	}
	return 0, false
}

// WorkloadEntryOf reduces a WorkloadEntry.
func WorkloadEntryOf(in *unstructured.Unstructured) *WorkloadEntry {
	w := &WorkloadEntry{Key: Key{in.GetNamespace(), in.GetName()}, Created: in.GetCreationTimestamp().Time, Generation: in.GetGeneration(), Seen: seenBy(in, authz.ConditionType), Bound: seenBy(in, api.ConditionWaypointBound)}
	var spec networkingv1.WorkloadEntry
	w.Faults = readSpec(in, &spec)
	labels := maps.Clone(spec.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, in.GetLabels())
	w.Labels = LabelsOf(labels)
	if len(w.Faults) > 0 {
		return w
	}
	w.EntryEndpoint, w.Faults = entryEndpoint("spec", &spec, labels)
	return w
}

// readSpec decodes the spec of an object of Istio's. What it does not know is a fault, or a slip in a word would be none.
func readSpec(in *unstructured.Unstructured, into proto.Message) []string {
	text, err := json.Marshal(in.Object["spec"])
	if err != nil {
		return []string{"spec: " + err.Error()}
	}
	return decode(text, into, protojson.UnmarshalOptions{})
}

// decode is readSpec of what is JSON already.
func decode(text []byte, into proto.Message, opts protojson.UnmarshalOptions) []string {
	if string(text) == "null" {
		return nil
	}
	if err := opts.Unmarshal(text, into); err != nil {
		// protojson varies its spaces, so that nobody relies on its words; problems are compared all the same.
		return []string{"spec: " + strings.ReplaceAll(err.Error(), "\u00a0", " ")}
	}
	return nil
}

// entryEndpoint reads an endpoint; where names the field that it is in.
func entryEndpoint(where string, in *networkingv1.WorkloadEntry, labels map[string]string) (EntryEndpoint, []string) {
	e := EntryEndpoint{
		Network: in.GetNetwork(), Weight: in.GetWeight(), ServiceAccount: in.GetServiceAccount(), Tunnel: LabelsOf(labels).Get(api.LabelTunnel),
	}
	locality := strings.SplitN(in.GetLocality(), "/", 3)
	locality = append(locality, "", "")
	e.Locality = Locality{Region: locality[0], Zone: locality[1], Subzone: locality[2]}
	var faults []string
	switch address := in.GetAddress(); {
	case address == "":
		faults = append(faults, where+".address is empty: an endpoint of another network's gateway is not supported")
	case strings.HasPrefix(address, "unix://"):
		faults = append(faults, where+".address: a Unix socket cannot be reached from other pods")
	default:
		if addr, err := netip.ParseAddr(address); err == nil {
			var fault string
			if e.Addr, fault = parseAddr(where+".address", addr.String()); fault != "" {
				faults = append(faults, fault)
			}
		} else if host, fault := parseHost(where+".address", address, false); fault != "" {
			faults = append(faults, fault+", nor an IP address")
		} else {
			e.Host = host
		}
	}
	for name, number := range in.GetPorts() {
		port, fault := parsePort(where+".ports."+name, int32(min(number, math.MaxInt32)))
		if fault != "" {
			faults = append(faults, fault)
			continue
		}
		e.Ports = append(e.Ports, NamedPort{name, port})
	}
	slices.SortFunc(e.Ports, func(a, b NamedPort) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(faults)
	return e, faults
}

// parseHost reads a DNS name; wildcard lets its first label be "*".
func parseHost(what, s string, wildcard bool) (string, string) {
	host := strings.TrimSuffix(strings.ToLower(s), ".")
	errs := validation.IsDNS1123Subdomain(host)
	if wildcard && strings.HasPrefix(host, "*.") {
		errs = validation.IsWildcardDNS1123Subdomain(host)
	}
	if len(errs) > 0 {
		return "", fmt.Sprintf("%s %q is not a DNS name", what, s)
	}
	return host, ""
}
