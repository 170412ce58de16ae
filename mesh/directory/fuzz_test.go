package directory_test

import (
	"encoding/json"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
)

// FuzzAddress puts whatever comes as an Address: it is rejected or can be found, dumped, picked and removed without a trace.
func FuzzAddress(f *testing.F) {
	for _, m := range []proto.Message{
		&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: pod("a", "10.0.0.1", serves("web", port(80, 8080)))}},
		&workloadpb.Address{Type: &workloadpb.Address_Service{Service: service("web", at(vip("10.1.0.1"), cidr("10.2.0.0/16")),
			balanced(workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_NETWORK, workloadpb.LoadBalancing_ZONE))}},
		&workloadpb.Address{},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var addr workloadpb.Address
		if proto.Unmarshal(b, &addr) != nil {
			return
		}
		name := addr.GetWorkload().GetUid()
		if s := addr.GetService(); s != nil {
			name = s.GetNamespace() + "/" + s.GetHostname()
		}
		d := newDirectory()
		r := &discoveryv3.Resource{Name: name, Resource: &anypb.Any{TypeUrl: "type.googleapis.com/istio.workload.Address", Value: b}}
		if rejected := d.HandleAddresses([]*discoveryv3.Resource{r}, nil); len(rejected) > 0 {
			if left := leftover(d); left != "" {
				t.Fatalf("rejected (%v), and left: %s", rejected[0].Err, left)
			}
			return
		}
		w := d.Workload(name)
		if s := addr.GetService(); s != nil {
			key := directory.ServiceKey{Namespace: s.GetNamespace(), Hostname: s.GetHostname()}
			known := d.Service(key)
			if known == nil {
				t.Fatalf("%s was accepted and is not there", name)
			}
			for _, p := range known.Ports {
				if _, err := d.Pick(directory.PickRequest{Service: known, Port: p.Service}); err == nil {
					t.Fatal("picked an endpoint where there is none")
				}
			}
		} else if w == nil {
			t.Fatalf("%q was accepted and is not there", name)
		}
		if _, err := json.Marshal(d.Dump()); err != nil {
			t.Fatal(err)
		}
		d.HandleAddresses(nil, []string{name})
		if left := leftover(d); left != "" {
			t.Fatalf("after removal, left: %s", left)
		}
	})
}

// FuzzAuthorization does the same for policies.
func FuzzAuthorization(f *testing.F) {
	for _, a := range []*security.Authorization{
		{Name: "a", Namespace: "shop", Scope: security.Scope_NAMESPACE, Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{
			NotPrincipals: []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &security.Empty{}}}},
			SourceIps:     []*security.Address{{Address: []byte{10, 0, 0, 0}, Length: 8}}, DestinationPorts: []uint32{80},
		}}}}}}},
		{Name: "b", Scope: security.Scope_GLOBAL, Action: 9},
	} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDirectory()
		r := &discoveryv3.Resource{Name: "x", Resource: &anypb.Any{TypeUrl: "type.googleapis.com/istio.security.Authorization", Value: b}}
		d.HandleAuthorizations([]*discoveryv3.Resource{r}, nil)
		if _, err := json.Marshal(d.Dump()); err != nil {
			t.Fatal(err)
		}
		d.HandleAuthorizations(nil, []string{"x"})
		if left := leftover(d); left != "" {
			t.Fatalf("after removal, left: %s", left)
		}
	})
}
