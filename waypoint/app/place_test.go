package app

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// TestPlace: of workloads the waypoint takes its own pod's place, and no other's.
func TestPlace(t *testing.T) {
	r := runWaypoint(t)
	for _, pod := range []string{"waypoint-2", "waypoint-1"} {
		content, err := anypb.New(&workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{
			Node: "node-of-" + pod, Locality: &workload.Locality{Region: "r1", Zone: "z1"},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		r.plane.mu.Lock()
		push := r.plane.push
		r.plane.mu.Unlock()
		if err := push(xds.TypeAddress, &discoveryv3.Resource{Name: "Kubernetes//Pod/shop/" + pod, Version: pod, Resource: content}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the waypoint knows where it runs", func() bool { return strings.Contains(r.log.String(), "node=node-of-waypoint-1 region=r1 zone=z1") })
	if got := r.log.String(); strings.Contains(got, "node-of-waypoint-2") {
		t.Errorf("log:\n%s", got)
	}
}
