package state

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
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
	fault := func(kind cluster.Kind, name string, n int) {
		m.fault(object{kind, cluster.Key{Namespace: "shop", Name: name}}, n)
	}
	fault(cluster.KindPod, "gone", 1)
	fault(cluster.KindService, "web", 1)
	fault(cluster.KindPod, "gone", 0)
	fault(cluster.KindService, "web", 2)
	fault(cluster.KindPod, "p", 1)
	want := `
# HELP ambit_object_faults Faults found in an object, for up to 500 objects that have some.
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
	for i := range 2 * maxFaulty {
		fault(cluster.KindNode, fmt.Sprint(i), 1)
	}
	if n := testutil.CollectAndCount(m.faults); n != maxFaulty {
		t.Errorf("%d objects are named, want %d", n, maxFaulty)
	}
	// Who is well again makes room for others.
	for i := range 2 * maxFaulty {
		fault(cluster.KindNode, fmt.Sprint(i), 0)
		if n, want := testutil.CollectAndCount(m.faults), min(maxFaulty, 2*maxFaulty-i-1+2); n != want {
			t.Fatalf("%d objects are named, want %d", n, want)
		}
	}
	if n := testutil.ToFloat64(m.problems); n != 3 {
		t.Errorf("%v faults in all, want 3", n)
	}
}
