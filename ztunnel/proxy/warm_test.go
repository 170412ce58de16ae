package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// warmed are certificates as the node asks for them: how often each is wanted.
type warmed map[identity.Identity]int

func (w warmed) SVID(context.Context, identity.Identity) (*identity.SVID, error) {
	return nil, errors.New("none is issued")
}
func (w warmed) Prefetch(id identity.Identity) { w[id]++ }
func (w warmed) Forget(id identity.Identity)   { delete(w, id) }

func (w warmed) String() string {
	var names []string
	for id := range w {
		names = append(names, id.ServiceAccount)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// TestWarm follows the node's workloads: whose certificates are there before the agent hands a pod over, and when they go.
func TestWarm(t *testing.T) {
	certificates := warmed{}
	d := directory.New(directory.Config{Logger: slog.New(slog.DiscardHandler), Node: "node1"})
	n := NewNode(NodeConfig{Directory: d, Certificates: certificates, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(d.Subscribe(n.onChange))

	on := func(node, account string, change ...func(*workload.Workload)) func(*workload.Workload) {
		return func(w *workload.Workload) {
			w.Node, w.ServiceAccount, w.TunnelProtocol = node, account, workload.TunnelProtocol_HBONE
			for _, f := range change {
				f(w)
			}
		}
	}
	plain := func(w *workload.Workload) { w.TunnelProtocol = workload.TunnelProtocol_NONE }
	native := func(w *workload.Workload) { w.NativeTunnel = true }
	put := func(name string, change func(*workload.Workload)) func() []xds.Rejection {
		a := pod(name, fmt.Sprint("10.0.0.", len(name)), change)
		return func() []xds.Rejection {
			return d.HandleAddresses([]*discoveryv3.Resource{pack(t, a.GetWorkload().GetUid(), xds.TypeAddress, a)}, nil)
		}
	}
	gone := func(name string) func() []xds.Rejection {
		uid := pod(name, "10.0.0.1").GetWorkload().GetUid()
		return func() []xds.Rejection { return d.HandleAddresses(nil, []string{uid}) }
	}
	handedOver := identity.Identity{TrustDomain: "cluster.local", Namespace: "ns", ServiceAccount: "shared"}
	agent := func(f func(identity.Identity)) func() []xds.Rejection {
		return func() []xds.Rejection {
			n.mu.Lock()
			defer n.mu.Unlock()
			f(handedOver)
			return nil
		}
	}
	for _, step := range []struct {
		what string
		do   func() []xds.Rejection
		want string
	}{
		{"a workload of another node", put("x", on("node2", "far")), ""},
		{"one of this node", put("a", on("node1", "shared")), "shared"},
		{"the same again", put("a", on("node1", "shared", func(w *workload.Workload) { w.CanonicalRevision = "v2" })), "shared"},
		{"another one of the same identity", put("bb", on("node1", "shared")), "shared"},
		{"one that is not in the mesh", put("ccc", on("node1", "plain", plain)), "shared"},
		{"one that speaks HBONE itself", put("dddd", on("node1", "native", native)), "shared"},
		{"one that joins", put("ccc", on("node1", "joined")), "joined shared"},
		{"one that leaves the mesh", put("ccc", on("node1", "joined", plain)), "shared"},
		{"one that gets another identity", put("bb", on("node1", "other")), "other shared"},
		{"the agent hands the first one's pod over", agent(n.useLocked), "other shared"},
		{"the first one goes, its pod is still there", gone("a"), "other shared"},
		{"the pod goes, too", agent(n.disuseLocked), "other"},
		{"the last ones go", gone("bb"), ""},
		{"what had no certificate goes", gone("dddd"), ""},
	} {
		if rejected := step.do(); len(rejected) > 0 {
			t.Fatalf("%s: %v", step.what, rejected)
		}
		if got := certificates.String(); got != step.want {
			t.Fatalf("%s: certificates of %q, want %q", step.what, got, step.want)
		}
	}
	if len(n.warmed) != 0 || len(n.used) != 0 {
		t.Errorf("left: %v and %v", n.warmed, n.used)
	}
}
