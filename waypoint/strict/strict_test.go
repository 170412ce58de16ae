package strict_test

import (
	"errors"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// table understands a part of ClusterLoadAssignment.
var table = strict.Table{
	"envoy.config.endpoint.v3.ClusterLoadAssignment":        strict.Known(`cluster_name endpoints named_endpoints`, `policy`),
	"envoy.config.endpoint.v3.LocalityLbEndpoints":          strict.Known(`lb_endpoints load_balancing_weight`, ``),
	"envoy.config.endpoint.v3.LbEndpoint":                   strict.Known(`endpoint`, ``),
	"envoy.config.endpoint.v3.Endpoint":                     strict.Known(`address`, ``),
	"envoy.config.core.v3.Address":                          strict.Known(`socket_address`, ``),
	"envoy.config.core.v3.SocketAddress":                    strict.Known(`address`, ``),
	"envoy.config.endpoint.v3.ClusterLoadAssignment.Policy": strict.Known(``, `overprovisioning_factor`),
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"all understood", `{clusterName: "c", endpoints: [{loadBalancingWeight: 1, lbEndpoints: [{endpoint: {address: {socketAddress: {address: "a"}}}}]}], policy: {overprovisioningFactor: 1}}`, ""},
		{"in a list of a list", `{endpoints: [{}, {priority: 1, lbEndpoints: [{}, {healthStatus: HEALTHY, endpoint: {address: {pipe: {path: "x"}}}}]}]}`,
			"endpoints[1].lb_endpoints[1].endpoint.address.pipe: not supported: leave it out; endpoints[1].lb_endpoints[1].health_status: not supported: leave it out; endpoints[1].priority: not supported: leave it out"},
		{"in a map", `{namedEndpoints: {"b": {hostname: "x"}, "a": {hostname: "y"}}}`,
			`named_endpoints["a"].hostname: not supported: leave it out; named_endpoints["b"].hostname: not supported: leave it out`},
		{"below what is left aside", `{policy: {weightedPriorityHealth: true}}`, "policy.weighted_priority_health: not supported: leave it out"},
		{"defaults are not set", `{endpoints: [{priority: 0}]}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m endpointv3.ClusterLoadAssignment
			data, err := yaml.YAMLToJSON([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if err := protojson.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			var r strict.Report
			table.Check(&m, nil, &r)
			got := ""
			if err := r.Err(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
			if r.Empty() != (tt.want == "") {
				t.Errorf("empty: %v", r.Empty())
			}
		})
	}
}

// TestNewer: a field that the schema does not have is named by its number, wherever it is.
func TestNewer(t *testing.T) {
	newer := protowire.AppendVarint(protowire.AppendTag(nil, 1234, protowire.VarintType), 1)
	m := &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	m.Endpoints[0].ProtoReflect().SetUnknown(newer)
	var r strict.Report
	table.Check(m, nil, &r)
	want := "endpoints[0]: field number 1234 of envoy.config.endpoint.v3.LocalityLbEndpoints is newer than this waypoint: leave it out, or upgrade the waypoint"
	if err := r.Err(); err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	var p strict.Problem
	if !errors.As(r.Err(), &p) || p.Path != "endpoints[0]" {
		t.Errorf("problem %+v", p)
	}
}

func TestUnpack(t *testing.T) {
	at := (*strict.Path)(nil).Field("typed_config")
	good, err := anypb.New(&corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		a    *anypb.Any
		into proto.Message
		ok   bool
		want string
	}{
		{"a field", good, &corev3.Address{}, true, "typed_config.pipe: not supported: leave it out"},
		{"none", nil, &corev3.Address{}, false, "typed_config: required: envoy.config.core.v3.Address"},
		{"another", good, &corev3.SocketAddress{}, false, "typed_config: envoy.config.core.v3.Address is not supported here: it must be envoy.config.core.v3.SocketAddress"},
		{"broken", &anypb.Any{TypeUrl: good.TypeUrl, Value: []byte{0xff}}, &corev3.Address{}, false, "typed_config: is no envoy.config.core.v3.Address: "},
		{"a value", &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.UInt32Value", Value: []byte{8, 7}}, &wrapperspb.UInt32Value{}, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r strict.Report
			ok := table.Unpack(tt.a, tt.into, at, &r)
			got := ""
			if err := r.Err(); err != nil {
				got = err.Error()
			}
			if ok != tt.ok || !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("%v, %s\nwant %v, %s", ok, got, tt.ok, tt.want)
			}
		})
	}
}

func TestManyProblems(t *testing.T) {
	var r strict.Report
	for i := range 25 {
		r.Add((*strict.Path)(nil).Field("f").Index(i), "is bad")
	}
	got := r.Err().Error()
	if !strings.HasPrefix(got, "f[0]: is bad; f[1]: is bad; ") || !strings.HasSuffix(got, "; f[9]: is bad; 15 more") {
		t.Errorf("%s", got)
	}
	if len(r.Problems()) != 25 {
		t.Errorf("%d problems", len(r.Problems()))
	}
}

func TestBelow(t *testing.T) {
	var r strict.Report
	chains := (*strict.Path)(nil).Field("chains")
	r.Add(chains.Index(1).Field("name"), "is bad")
	for _, tt := range []struct {
		at   *strict.Path
		want bool
	}{{chains, true}, {chains.Index(1), true}, {chains.Index(1).Field("name"), true}, {nil, true},
		{chains.Index(1).Field("nam"), false}, {chains.Index(11), false}, {chains.Index(0), false}} {
		if got := r.Below(tt.at); got != tt.want {
			t.Errorf("%v: %v", tt.at, got)
		}
	}
}

func TestAside(t *testing.T) {
	got := strings.Join(table.Aside(), "\n")
	want := "- `envoy.config.endpoint.v3.ClusterLoadAssignment.Policy`: `overprovisioning_factor`\n- `envoy.config.endpoint.v3.ClusterLoadAssignment`: `policy`"
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestVerify(t *testing.T) {
	if err := table.Verify(); err != nil {
		t.Error(err)
	}
	wrong := strict.Table{"envoy.config.core.v3.Address": strict.Known("socket_adress", ""), "envoy.Made.Up": strict.Known("", "")}
	err := wrong.Verify()
	if err == nil || !strings.Contains(err.Error(), "has no field socket_adress") || !strings.Contains(err.Error(), "envoy.Made.Up") {
		t.Errorf("%v", err)
	}
}
