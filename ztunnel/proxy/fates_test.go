package proxy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

func TestFates(t *testing.T) {
	workload := func(change func(*directory.Workload)) *directory.Workload {
		w := &directory.Workload{
			UID: "Kubernetes//Pod/ns/a", Namespace: "ns", Name: "a", Healthy: true, Tunnel: directory.TunnelHBONE,
			Identity: identity.Identity{TrustDomain: "td", Namespace: "ns", ServiceAccount: "sa"},
			Addrs:    []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		}
		if change != nil {
			change(w)
		}
		return w
	}
	same := func(*directory.Workload) {}
	sick := func(w *directory.Workload) { w.Healthy = false }
	key := directory.ServiceKey{Namespace: "ns", Hostname: "web"}
	uid := []string{"Kubernetes//Pod/ns/a"}
	for _, tt := range []struct {
		name   string
		change directory.Change
		want   fates
	}{
		{"new", directory.Change{Workloads: []directory.WorkloadChange{{New: workload(nil), Local: true}}}, fates{}},
		{"gone", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(nil)}}}, fates{gone: uid}},
		{"no matter", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(nil), New: workload(same), Local: true}}}, fates{}},
		{"leaves", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(nil), New: workload(sick), Local: true}}},
			fates{leaving: []podName{{namespace: "ns", pod: "a"}}}},
		{"leaves elsewhere", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(nil), New: workload(sick)}}}, fates{}},
		{"was not ready anyway", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(sick), New: workload(sick), Local: true}}}, fates{}},
		{"another address", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(nil), New: workload(func(w *directory.Workload) {
			w.Addrs = []netip.Addr{netip.MustParseAddr("10.0.0.2")}
		})}}}, fates{moved: uid}},
		{"another identity", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(nil), New: workload(func(w *directory.Workload) {
			w.Identity.ServiceAccount = "other"
		})}}}, fates{moved: uid}},
		{"not captured any more", directory.Change{Workloads: []directory.WorkloadChange{{Old: workload(nil), New: workload(func(w *directory.Workload) {
			w.Tunnel = directory.TunnelNone
		})}}}, fates{moved: uid}},
		{"service gone", directory.Change{Services: []directory.ServiceChange{{Old: &directory.Service{ServiceKey: key}}}},
			fates{services: []directory.ServiceKey{key}}},
	} {
		got := fatesOf(tt.change)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(fates{}, podName{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if got.empty() != cmp.Equal(tt.want, fates{}, cmp.AllowUnexported(fates{}, podName{})) {
			t.Errorf("%s: empty %v", tt.name, got.empty())
		}
	}
}
