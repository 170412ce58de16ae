package upstream

import (
	"testing"

	"github.com/ambit-mesh/ambit/waypoint/config"
)

// TestNear: endpoints that share with the proxy what the cluster prefers come first, others when there are none; without a place, or a
// preference, all are alike.
func TestNear(t *testing.T) {
	at := func(n int, node string) *config.Endpoint {
		return &config.Endpoint{Address: address(n), Weight: 1, Node: node}
	}
	endpoints := &config.Endpoints{Priorities: []config.Priority{{Localities: []config.Locality{
		{Region: "r1", Zone: "z1", Endpoints: []*config.Endpoint{at(0, "n1"), at(1, "n2")}},
		{Region: "r1", Zone: "z2", Endpoints: []*config.Endpoint{at(2, "n3")}},
		{Region: "r2", Zone: "z1", Endpoints: []*config.Endpoint{at(3, "n4")}},
	}}}}
	here := Place{Node: "n1", Region: "r1", Zone: "z1"}
	for _, tt := range []struct {
		name   string
		prefer []config.Scope
		place  Place
		want   [][]int // endpoints, in groups that are used one after the other
	}{
		{"no preference", nil, here, [][]int{{0, 1, 2, 3}}},
		{"no place", []config.Scope{config.Zone}, Place{}, [][]int{{0, 1, 2, 3}}},
		{"region and zone", []config.Scope{config.Region, config.Zone}, here, [][]int{{0, 1}, {2}, {3}}},
		{"node, in its zone", []config.Scope{config.Region, config.Zone, config.SubZone, config.Node}, here, [][]int{{0}, {1}, {2}, {3}}},
		{"node alone", []config.Scope{config.Node}, here, [][]int{{0}, {1, 2, 3}}},
		{"a node without any", []config.Scope{config.Node}, Place{Node: "n9"}, [][]int{{0, 1, 2, 3}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := New(Config{})
			t.Cleanup(m.Close)
			c := &Cluster{manager: m, name: "c", known: map[endpointKey]*Endpoint{}}
			c.apply(&config.Cluster{Name: "c", Settings: &config.Settings{Balancer: config.Random, Prefer: tt.prefer}, Endpoints: endpoints})
			m.byName.Store("c", c)
			m.SetPlace(tt.place)
			var tried []*Endpoint
			for i, group := range tt.want {
				left := map[string]bool{}
				for _, n := range group {
					left[address(n).String()] = true
				}
				for range group {
					e := mustChoose(t, c, tried...)
					if addr := e.key.addr.String(); !left[addr] {
						t.Fatalf("group %d of %v: %s", i, tt.want, addr)
					} else {
						delete(left, addr)
					}
					tried = append(tried, e)
				}
			}
		})
	}
}
