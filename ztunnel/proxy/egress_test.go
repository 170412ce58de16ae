package proxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/lookup"
	"github.com/ambit-mesh/ambit/mesh/settings"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

func registryOnly(t *testing.T, h *settings.Holder, policy extension.Settings_OutboundPolicy) {
	t.Helper()
	body, err := anypb.New(&extension.Settings{TrustDomain: "cluster.local", OutboundPolicy: policy})
	if err != nil {
		t.Fatal(err)
	}
	if rejected := h.Handler().Apply([]*discoveryv3.Resource{{Name: extension.Mesh, Resource: body}}, nil); rejected != nil {
		t.Fatal(rejected)
	}
}

// Under REGISTRY_ONLY what the mesh does not know is refused, what it knows is not, and the change holds at once, both ways.
func TestRegistryOnly(t *testing.T) {
	n := newTestNode(t,
		pod("client", "10.0.0.1"), pod("web", "10.0.0.2", member("web", port(80, 8080))), svc("web", "10.96.0.1"),
		svc("range", "", func(s *workload.Service) {
			s.LoadBalancing = &workload.LoadBalancing{Mode: workload.LoadBalancing_PASSTHROUGH}
			s.Addresses = []*workload.NetworkAddress{{Address: netip.MustParseAddr("198.51.100.0").AsSlice(), Length: wrapperspb.UInt32(24)}}
		}),
	)
	n.Settings = new(settings.Holder)
	self := n.Directory.WorkloadByAddr("", netip.MustParseAddr("10.0.0.1"))
	refused := func(to string) bool {
		_, err := n.route(self, netip.MustParseAddrPort(to), nil)
		if err != nil && flagOf(err) != telemetry.FlagUnregistered {
			t.Errorf("%s: %v has flag %s", to, err, flagOf(err))
		}
		return errors.Is(err, errNotRegistered)
	}
	beyond := []string{"203.0.113.1:80", "198.51.100.7:81", "169.254.169.254:80", "[2001:db8::1]:80"}
	within := []string{"10.96.0.1:80", "10.0.0.2:8080", "10.0.0.1:9999", "198.51.100.7:80"}
	for _, only := range []bool{false, true, false} {
		policy := extension.Settings_ALLOW_ANY
		if only {
			policy = extension.Settings_REGISTRY_ONLY
		}
		registryOnly(t, n.Settings, policy)
		for _, to := range beyond {
			if refused(to) != only {
				t.Errorf("%s: %s refused: %v", policy, to, !only)
			}
		}
		for _, to := range within {
			if refused(to) {
				t.Errorf("%s: %s, which the mesh knows, is refused", policy, to)
			}
		}
	}
}

// hostsFunc looks names up.
type hostsFunc func(ctx context.Context, host string) ([]netip.Addr, error)

func (f hostsFunc) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return f(ctx, host)
}

// TestLookupsEjectNobody: that a host name leads nowhere is tried with another endpoint, but no endpoint is ejected for it.
func TestLookupsEjectNobody(t *testing.T) {
	byName := func(host string) *workload.Address {
		return pod(host, "10.0.0.9", member("db", port(80, 8080)), func(w *workload.Workload) { w.Addresses, w.Hostname = nil, host })
	}
	n := newTestNode(t, pod("client", "10.0.0.1"), svc("db", "10.96.0.1"), byName("a.example"), byName("b.example"))
	self := n.Directory.WorkloadByAddr("", netip.MustParseAddr("10.0.0.1"))
	p := &Pod{node: n, logger: n.Logger}
	to := netip.MustParseAddrPort("10.96.0.1:80")
	for name, answer := range map[string]hostsFunc{
		"no such host":  func(context.Context, string) ([]netip.Addr, error) { return nil, lookup.ErrNotFound },
		"too many":      func(context.Context, string) ([]netip.Addr, error) { return nil, lookup.ErrBusy },
		"other family":  func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{netip.IPv6Unspecified()}, nil },
		"nobody to ask": nil,
	} {
		if n.Hosts = nil; answer != nil {
			n.Hosts = answer
		}
		for range 20 {
			_, err := p.connect(t.Context(), &conn{original: to, table: &p.conns}, self, to)
			if noAddress := (noAddressError{}); !errors.As(err, &noAddress) {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if out := n.Directory.Ejected(); out > 0 {
			t.Errorf("%s: %d endpoints are ejected", name, out)
		}
	}
	// A look-up that takes as long as an endpoint may, if there is another one, leaves the one that it was for blameless too.
	synctest.Test(t, func(t *testing.T) {
		n.Hosts = hostsFunc(func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 3*answerPatience)
			_, err := p.connect(ctx, &conn{original: to, table: &p.conns}, self, to)
			cancel()
			if err == nil {
				t.Fatal("connected")
			}
		}
		if out := n.Directory.Ejected(); out > 0 {
			t.Errorf("late: %d endpoints are ejected", out)
		}
	})
}

func TestHostAddrs(t *testing.T) {
	v4, v6, other4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.2")
	all := []netip.Addr{v6, v4, other4}
	dual := &directory.Workload{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	single := &directory.Workload{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	if got := hostAddrs(all, dual, v6); len(got) != 3 || got[0] != v6 {
		t.Errorf("asked by IPv6: %v", got)
	}
	if got := hostAddrs(all, dual, v4); len(got) != 3 || got[2] != v6 {
		t.Errorf("asked by IPv4: %v", got)
	}
	if got := hostAddrs(all, single, v6); len(got) != 2 || slices.Contains(got, v6) {
		t.Errorf("for a pod that has IPv4 only: %v", got)
	}
	if all[0] != v6 || all[1] != v4 {
		t.Errorf("the shared answer is changed: %v", all)
	}
}
