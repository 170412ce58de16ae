package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/discover"
	"github.com/ambit-mesh/ambit/cni/netnstest"
	"github.com/ambit-mesh/ambit/cni/probes"
	"github.com/ambit-mesh/ambit/cni/resolver"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/cni/zds"
)

// kernelWorld is a node made of real network namespaces, with the real parts below the agent. Pods are found by name.
type kernelWorld struct {
	*world
	host, peer ns.NetNS
	kernel     *rules.Kernel

	podsMu sync.Mutex // guards real
	real   map[string]ns.NetNS
}

func newKernelWorld(t *testing.T, kind string) *kernelWorld {
	t.Helper()
	netnstest.Need(t, "iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy", "ipset")
	k := &kernelWorld{world: newWorld(t), host: netnstest.New(t), peer: netnstest.New(t), real: map[string]ns.NetNS{}}
	netnstest.Run(t, k.host, "iptables-"+kind+" -A FORWARD -j ACCEPT")
	var err error
	if k.kernel, err = rules.NewKernel(t.Context(), k.host); err != nil {
		t.Fatal(err)
	}
	k.timing.DrainLook = 50 * time.Millisecond
	return k
}

// addPod makes a pod with a link to the peer.
func (k *kernelWorld) addPod(name string, number int, change ...func(*corev1.Pod)) ns.NetNS {
	k.t.Helper()
	n := netnstest.New(k.t)
	addr := fmt.Sprintf("10.80.%d.2", number)
	netnstest.Link(k.t, n, k.peer, fmt.Sprintf("pod%d", number), []string{addr + "/24", fmt.Sprintf("fd80:%d::2/64", number)},
		[]string{fmt.Sprintf("10.80.%d.1/24", number), fmt.Sprintf("fd80:%d::1/64", number)})
	k.podsMu.Lock()
	k.real[name] = n
	k.podsMu.Unlock()
	k.running(name, addr, change...)
	return n
}

func (k *kernelWorld) Find(uid string, _ []netip.Addr) (ns.NetNS, error) {
	k.podsMu.Lock()
	defer k.podsMu.Unlock()
	if n, ok := k.real[uid]; ok {
		return ns.GetNS(n.Path())
	}
	return nil, fmt.Errorf("pod %s: %w", uid, discover.ErrNotRunning)
}

func (k *kernelWorld) Resolver(string) (resolver.Settings, error) {
	return resolver.Settings{}, discover.ErrNotRunning
}

func (k *kernelWorld) Open(path string) (ns.NetNS, error) { return ns.GetNS(path) }

func (k *kernelWorld) All() (map[string][]ns.NetNS, error) {
	k.podsMu.Lock()
	uids := slices.Collect(maps.Keys(k.real))
	k.podsMu.Unlock()
	out := map[string][]ns.NetNS{}
	for _, uid := range uids {
		n, err := k.Find(uid, nil)
		if err != nil {
			return nil, err
		}
		out[uid] = append(out[uid], n)
	}
	return out, nil
}

func (k *kernelWorld) Running() (map[string][]uint64, error) { return nil, nil }

// startKernel starts an agent on the real parts.
func (k *kernelWorld) startKernel() *running {
	k.t.Helper()
	r := &running{done: make(chan error, 1)}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	r.server = zds.NewServer(zds.Config{Logger: log, Observe: func(e zds.Event) { r.ProxyEvent(e) }})
	r.Agent = New(Config{
		NodeName: "node1", Namespace: api.DefaultNamespace, ExcludeNamespaces: []string{"kube-system"}, IPv6: true, RunDir: k.dir, ZDSSocket: filepath.Join(k.dir, "zds"),
		Cluster: Cluster{Client: k.client, NodeName: "node1", Namespace: api.DefaultNamespace, DaemonSet: api.NodeAgent, Events: k.events},
		Kernel:  k.kernel, Connections: conntrack.Kernel{}, Probes: probes.New(probes.Config{NetNS: k.host, Backend: k.kernel.Host()}),
		Node: k, Proxies: r.server, Installation: installation{k.world}, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: log, Timings: k.timing,
	})
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() { r.done <- r.Run(ctx) }()
	k.t.Cleanup(func() { r.stop(k.t) })
	return r.ready(k.t)
}

// nodeProxy echoes what is redirected to it in a pod.
type nodeProxy struct{ listeners []net.Listener }

// serveIn opens the proxy's listeners in the pod, as one does on an add.
func serveIn(t *testing.T, n ns.NetNS) *nodeProxy {
	t.Helper()
	p := &nodeProxy{}
	for _, port := range []string{":15001", ":15006", ":15008"} {
		ln := netnstest.Listen(t, n, port)
		p.listeners = append(p.listeners, ln)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}()
	}
	return p
}

func (p *nodeProxy) close() {
	for _, ln := range p.listeners {
		ln.Close()
	}
}

// echoServer answers on the peer.
func echoServer(t *testing.T, n ns.NetNS, addr string) {
	t.Helper()
	ln := netnstest.Listen(t, n, addr)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

func roundTrip(t *testing.T, c net.Conn, line string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(c, line)
	if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || strings.TrimSpace(got) != line {
		t.Errorf("%s: got %q, %v", line, got, err)
	}
}

func (k *kernelWorld) captured(t *testing.T, n ns.NetNS) rules.State {
	t.Helper()
	st, err := k.kernel.Inspect(t.Context(), n, rules.For(rules.Config{IPv6: true}))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestKernelLife leads a pod through all of it in a real network namespace: live enrolment, damage, an agent's restart,
// un-enrolment with a connection that lives on, and its end.
func TestKernelLife(t *testing.T) {
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k := newKernelWorld(t, kind)
			r := k.startKernel()
			k.connect()
			n := k.addPod("web", 1)
			echoServer(t, k.peer, "[::]:80")
			link := netnstest.Sniff(t, k.peer, "pod1")
			before := netnstest.Dial(t, n, "10.80.1.1:80")
			roundTrip(t, before, "plain before")

			proxy := serveIn(t, n)
			k.namespace("shop", "ambient")
			eventually(t, "captured", func() bool { return k.redirection("web") == api.RedirectionEnabled })
			if st := k.captured(t, n); !st.Captured || len(st.Differences) > 0 {
				t.Fatalf("says that it is captured, and is %+v", st)
			}
			roundTrip(t, before, "plain after enrolment")
			tunnelled := netnstest.Dial(t, n, "[fd80:1::1]:80")
			roundTrip(t, tunnelled, "secret one")

			// Somebody flushes everything; the agent notices by itself.
			for _, c := range []string{"iptables-" + kind, "ip6tables-" + kind} {
				netnstest.Run(t, n, c+" -t nat -F")
				netnstest.Run(t, n, c+" -t mangle -F")
			}
			eventually(t, "repaired", func() bool { st := k.captured(t, n); return st.Captured && len(st.Differences) == 0 })
			roundTrip(t, tunnelled, "secret two")
			roundTrip(t, before, "plain after repair")

			r.stop(t)
			if st := k.captured(t, n); !st.Captured || len(st.Differences) > 0 {
				t.Errorf("the agent's end changed the pod: %+v", st)
			}
			roundTrip(t, tunnelled, "secret three")
			k.startKernel()
			k.connect()
			eventually(t, "served again", func() bool { return k.serves("web") })
			roundTrip(t, tunnelled, "secret four")
			short := netnstest.Dial(t, n, "10.80.1.1:80")
			roundTrip(t, short, "secret five")
			short.Close()

			k.namespace("shop", "")
			eventually(t, "un-hooked", func() bool { return !k.captured(t, n).Captured && !k.serves("web") })
			proxy.close()
			roundTrip(t, netnstest.Dial(t, n, "10.80.1.1:80"), "plain again")
			roundTrip(t, tunnelled, "secret six")
			roundTrip(t, before, "plain to the end")
			never(t, "rules go before the last connection", func() bool { return !k.captured(t, n).Leftover })
			tunnelled.Close()
			eventually(t, "nothing is left", func() bool { return !k.captured(t, n).Leftover })
			if link.Contains(t, "secret") || !link.Contains(t, "plain again") {
				t.Error("payload of a captured connection on the link, or none of a plain one")
			}
		})
	}
}

// TestKernelNode: two pods, one started by the plugin before anything runs in it; a third with leftovers of an agent that
// is gone; and a node that is clean after the DaemonSet's deletion.
func TestKernelNode(t *testing.T) {
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k := newKernelWorld(t, kind)
			left := k.addPod("left", 3)
			if err := k.kernel.Apply(t.Context(), left, rules.For(rules.Config{IPv6: true})); err != nil {
				t.Fatal(err)
			}
			r := k.startKernel()
			k.connect()
			eventually(t, "leftovers go", func() bool { return !k.captured(t, left).Leftover })

			k.pod("starts", label("ambient"))
			sandbox := netnstest.New(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := agentapi.Add(ctx, filepath.Join(k.dir, api.AgentSocket), agentapi.AddRequest{
				Netns: sandbox.Path(), PodName: "starts", PodNamespace: "shop", PodUID: "starts",
				IPs: []agentapi.IP{{Address: net.IPNet{IP: net.ParseIP("10.80.4.2"), Mask: net.CIDRMask(24, 32)}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if st := k.captured(t, sandbox); !st.Captured || len(st.Differences) > 0 || k.redirection("starts") != api.RedirectionEnabled {
				t.Errorf("answered too early: %+v", st)
			}
			k.podsMu.Lock()
			k.real["starts"] = sandbox
			k.podsMu.Unlock()
			if out := netnstest.Run(t, k.host, "ipset list istio-inpod-probes-v4"); !strings.Contains(out, "10.80.4.2 comment \"starts\"") {
				t.Errorf("not exempt:\n%s", out)
			}
			k.daemonSetGone()
			r.stop(t)
			for name, n := range map[string]ns.NetNS{"left": left, "starts": sandbox} {
				if st := k.captured(t, n); st.Leftover {
					t.Errorf("left on %s: %+v", name, st)
				}
			}
			host := netnstest.Run(t, k.host, "ipset list -name") + netnstest.Run(t, k.host, "iptables-"+kind+"-save")
			if strings.Contains(strings.ToLower(host), "istio") {
				t.Errorf("left on the host:\n%s", host)
			}
			for _, socket := range []string{api.AgentSocket, "zds"} {
				if _, err := os.Stat(filepath.Join(k.dir, socket)); err == nil {
					t.Errorf("left: %s", socket)
				}
			}
		})
	}
}
