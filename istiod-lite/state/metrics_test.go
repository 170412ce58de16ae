package state

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// TestMetrics: changes are counted as dashboards want them, and faults are shown by object as long as they last.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := newMetrics(reg, func() int { return 7 })
	m.event(cluster.Event{Kind: cluster.KindPod, Op: cluster.Upsert})
	m.event(cluster.Event{Kind: cluster.KindPod, Op: cluster.Upsert})
	m.event(cluster.Event{Kind: cluster.KindService, Op: cluster.Delete})
	m.event(cluster.Event{Kind: cluster.KindService, Op: cluster.Replace})
	m.event(cluster.Event{Kind: cluster.KindPeerAuthentication, Op: cluster.Upsert})
	m.sizes(map[cluster.Kind]int{cluster.KindService: 3, cluster.KindPod: 5})
	fault := func(kind cluster.Kind, name string) translate.Problem {
		return translate.Problem{Kind: kind, Key: cluster.Key{Namespace: "shop", Name: name}, Message: "wrong"}
	}
	m.show([]translate.Problem{fault(cluster.KindPod, "gone")})
	m.show([]translate.Problem{fault(cluster.KindService, "web"), fault(cluster.KindService, "web"), fault(cluster.KindPod, "p")})
	want := `
# HELP ambit_object_faults Faults found in an object, for the first 500 objects that have some.
# TYPE ambit_object_faults gauge
ambit_object_faults{kind="Pod",name="p",namespace="shop"} 1
ambit_object_faults{kind="Service",name="web",namespace="shop"} 2
# HELP ambit_state_problems Faults found in objects.
# TYPE ambit_state_problems gauge
ambit_state_problems 3
# HELP ambit_state_queued_events Changes that wait to be translated.
# TYPE ambit_state_queued_events gauge
ambit_state_queued_events 7
# HELP pilot_k8s_cfg_events Changes of the mesh's own kinds, such as policies.
# TYPE pilot_k8s_cfg_events counter
pilot_k8s_cfg_events{event="update",type="PeerAuthentication"} 1
# HELP pilot_k8s_reg_events Changes of Services, EndpointSlices, Pods, Nodes, Namespaces and ConfigMaps.
# TYPE pilot_k8s_reg_events counter
pilot_k8s_reg_events{event="delete",type="Service"} 1
pilot_k8s_reg_events{event="update",type="Pod"} 2
# HELP pilot_services Services known.
# TYPE pilot_services gauge
pilot_services 3
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "ambit_object_faults", "ambit_state_problems", "ambit_state_queued_events",
		"pilot_k8s_cfg_events", "pilot_k8s_reg_events", "pilot_services"); err != nil {
		t.Error(err)
	}
	var many []translate.Problem
	for i := range 2 * maxFaulty {
		many = append(many, fault(cluster.KindPod, fmt.Sprint(i)))
	}
	m.show(many)
	if n := testutil.CollectAndCount(m.faults); n != maxFaulty {
		t.Errorf("%d objects are named, want %d", n, maxFaulty)
	}
}
