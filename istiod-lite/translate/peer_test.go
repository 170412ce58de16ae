package translate_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
)

// peerRefuses says why Istio's own node proxy would not take a resource, or would leave out a part of it that a policy needs;
// "" if it takes it as it is. It rejects unknown enumerators, addresses of other lengths than 4 and 16, impossible prefixes,
// gateways without destination, names of services without namespace, and some enumerators that it knows.
func peerRefuses(m proto.Message) string {
	return refused(m.ProtoReflect(), string(m.ProtoReflect().Descriptor().Name()))
}

func refused(m protoreflect.Message, path string) string {
	if fault := faultOf(m.Interface()); fault != "" {
		return path + ": " + fault
	}
	fault := ""
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + "." + string(fd.Name())
		each := func(of protoreflect.FieldDescriptor, v protoreflect.Value) {
			switch {
			case fault != "":
			case of.Message() != nil && of.Message().ParentFile().Package() != "google.protobuf":
				fault = refused(v.Message(), at)
			case of.Enum() != nil && of.Enum().Values().ByNumber(v.Enum()) == nil:
				fault = fmt.Sprintf("%s: unknown enumerator %d", at, v.Enum())
			}
		}
		switch {
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				each(fd.MapValue(), v)
				return fault == ""
			})
		case fd.IsList():
			for i := range v.List().Len() {
				each(fd, v.List().Get(i))
			}
		default:
			each(fd, v)
		}
		return fault == ""
	})
	return fault
}

// faultOf is what is wrong with one message, apart from those in it.
func faultOf(m any) string {
	switch m := m.(type) {
	case *workload.Workload:
		for _, a := range m.GetAddresses() {
			if len(a) != 4 && len(a) != 16 {
				return fmt.Sprintf("an address of %d bytes", len(a))
			}
		}
		for name := range m.GetServices() {
			if !strings.Contains(name, "/") {
				return "service " + name + " has no namespace"
			}
		}
		if m.GetTunnelProtocol() == workload.TunnelProtocol_LEGACY_ISTIO_MTLS {
			return "a tunnel that it does not speak"
		}
	case *workload.NetworkAddress:
		return addressFault(m.GetAddress(), m.GetLength().GetValue())
	case *workload.GatewayAddress:
		if m.GetDestination() == nil {
			return "a gateway without destination"
		}
	case *workload.LoadBalancing:
		for _, s := range m.GetRoutingPreference() {
			if s == workload.LoadBalancing_UNSPECIFIED_SCOPE {
				return "a preference for nothing"
			}
		}
	case *security.Address:
		return addressFault(m.GetAddress(), m.GetLength())
	case *security.StringMatch:
		if m.GetMatchType() == nil {
			return "a match of nothing is left out"
		}
	case *security.Match:
		for _, p := range append(m.GetDestinationPorts(), m.GetNotDestinationPorts()...) {
			if p > 1<<16-1 {
				return fmt.Sprintf("port %d is cut to 16 bits", p)
			}
		}
	}
	return ""
}

func addressFault(addr []byte, bits uint32) string {
	if n := len(addr); n != 4 && n != 16 || int(bits) > 8*n {
		return fmt.Sprintf("%d bits of an address of %d bytes", bits, n)
	}
	return ""
}

// TestPeerRefuses: what it looks for it finds, however deep.
func TestPeerRefuses(t *testing.T) {
	ok := &workload.Address{Type: &workload.Address_Service{Service: &workload.Service{
		Addresses: []*workload.NetworkAddress{{Address: []byte{10, 0, 0, 1}}}, Waypoint: nil}}}
	if fault := peerRefuses(ok); fault != "" {
		t.Error(fault)
	}
	for _, m := range []proto.Message{
		&workload.Address{Type: &workload.Address_Service{Service: &workload.Service{Addresses: []*workload.NetworkAddress{{Address: []byte{1}}}}}},
		&workload.Address{Type: &workload.Address_Service{Service: &workload.Service{Waypoint: &workload.GatewayAddress{}}}},
		&workload.Address{Type: &workload.Address_Service{Service: &workload.Service{IpFamilies: 9}}},
		&workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{Services: map[string]*workload.PortList{"a": {}}}}},
		&workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{Services: map[string]*workload.PortList{
			"a/b": {Ports: []*workload.Port{{AppProtocol: 99}}}}}}},
		&security.Authorization{Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{Principals: []*security.StringMatch{{}}}}}}}}},
		&security.Authorization{Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
			SourceIps: []*security.Address{{Address: make([]byte, 4), Length: 33}}}}}}}}},
	} {
		if peerRefuses(m) == "" {
			t.Errorf("nothing is found in %v", m)
		}
	}
}
