package netns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// soak is set for runs that may take long.
func soak() bool { return os.Getenv("AMBIT_SOAK") != "" }

// relay is a node on which proxies follow each other. As in Kubernetes, each has a network namespace of its own; two are used
// in turn.
type relay struct {
	w     *world
	nodes [2]*lab.Node
	next  int
}

func (w *world) relay(n *lab.Node) *relay {
	w.t.Helper()
	r := &relay{w: w, nodes: [2]*lab.Node{n, n}, next: 1}
	host, err := w.AddHost(n.Name)
	w.must(err)
	second := *n
	second.Host = host
	r.nodes[1] = &second
	return r
}

// start starts the next proxy, which must not run where the one before the last still does, and waits until it is ready.
func (r *relay) start(env ...string) *lab.Proxy {
	r.w.t.Helper()
	n := r.nodes[r.next%2]
	r.next++
	return r.w.start(n, env...)
}

// replace is a roll: the next one takes over, and old is told to end, which it does when its connections have.
func (r *relay) replace(old *lab.Proxy, env ...string) *lab.Proxy {
	r.w.t.Helper()
	newer := r.start(env...)
	r.w.must(old.Signal(syscall.SIGTERM))
	ctx, cancel := context.WithTimeout(r.w.ctx, patience)
	defer cancel()
	if err := old.Wait(ctx); err != nil {
		r.w.t.Fatalf("old proxy: %v\n%s", err, old.LogTail())
	}
	return newer
}

// series returns the value of one series of a proxy, as text.
func (w *world) series(p *lab.Proxy, name string) string {
	w.t.Helper()
	code, body, err := p.Get(w.ctx, 15020, "/metrics")
	if err != nil || code != http.StatusOK {
		w.t.Fatalf("metrics: status %d, %v", code, err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			return value
		}
	}
	return ""
}

// TestRestarts replaces a node's proxy many times under load: not one connect fails, whether it comes in a tunnel or in plain
// or goes out, since each proxy takes the listening sockets over from the one before.
func TestRestarts(t *testing.T) {
	restarts, perSecond := 100, 50
	if soak() {
		restarts = 1000
	}
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	r := w.relay(n2)
	client, server, plain := w.captured(n1, "client"), w.captured(n2, "server"), w.pod(n1, "plain")
	w.listen(server, ":8080", echo)
	w.listen(plain, ":8080", echo)
	w.settle()
	to := addr(server, false, 8080)
	for _, l := range []*load{
		startLoad(client, to, perSecond), startLoad(plain, to, perSecond), startLoad(server, addr(plain, false, 8080), perSecond),
	} {
		defer l.end(t)
	}
	p, apart := w.proxies[1], 0
	for i := range restarts {
		p = r.replace(p)
		if got := w.series(p, `ambit_handover_sockets_total{source="proxy"}`); got != "3" {
			t.Logf("after restart %d, %q sockets were taken over from the proxy before, not the pod's three", i+1, got)
			apart++
		}
	}
	// One that stands still for seconds on a busy machine is not waited for.
	if apart > restarts/20 {
		t.Errorf("%d of %d proxies did not take over from the one before", apart, restarts)
	}
	w.expect(client, to, client.IPv4)
}

// TestKill kills a node's only proxy. What connects while there is none waits, and is served by the next one; so do name
// queries, of which none is repeated.
func TestKill(t *testing.T) {
	rounds, each := 10, 10
	if soak() {
		rounds = 100
	}
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2", namesOn)
	r := w.relay(n2)
	client, plain := w.captured(n1, "client"), w.pod(n1, "plain")
	server, err := n2.AddPod("server")
	w.must(err)
	w.captureNames(server)
	w.listen(server, ":8080", echo)
	w.listen(plain, ":8080", echo)
	w.serve("web", 1, false)
	w.settle()
	to := addr(server, false, 8080)
	const kept = 3 + 2*2 // for connections; for names, by UDP and TCP of each family
	p := w.proxies[1]
	for round := range rounds {
		w.eventually("the agent keeps the pod's sockets", func() error {
			if n := n2.Depot.Len(); n != kept {
				return fmt.Errorf("%d sockets, want %d", n, kept)
			}
			return nil
		})
		p.Kill()
		var calls sync.WaitGroup
		for range each {
			for _, network := range []string{"udp", "tcp"} {
				for _, v6 := range []bool{false, true} {
					a := w.asker(server, network, ip(plain, v6)) // where no resolver is
					calls.Go(func() {
						got, err := a.ask("web.default.svc.cluster.local", dns.TypeA, ioTimeout)
						if err != nil || got != "NOERROR 10.96.0.1" {
							t.Errorf("round %d: a query to %s: %q, %v", round+1, a.RemoteAddr(), got, err)
						}
					})
				}
			}
		}
		for _, c := range []struct {
			from *lab.Pod
			to   string
		}{{client, to}, {plain, to}, {server, addr(plain, false, 8080)}} {
			for range each {
				calls.Go(func() {
					if _, err := call(c.from, c.to, "hello"); err != nil {
						t.Errorf("round %d: %s to %s: %v", round+1, c.from.Name, c.to, err)
					}
				})
			}
		}
		p = r.start(namesOn)
		calls.Wait()
		if got := w.series(p, `ambit_handover_sockets_total{source="depot"}`); got != strconv.Itoa(kept) {
			t.Errorf("round %d: %q sockets came from the agent, want the pod's %d", round+1, got, kept)
		}
		if t.Failed() {
			return
		}
	}
	// The agent is replaced: it is given the sockets again.
	n2.StopDepot()
	w.expect(client, to, client.IPv4)
	w.must(n2.StartDepot())
	w.eventually("the next agent keeps the pod's sockets", func() error {
		if n := n2.Depot.Len(); n != kept {
			return fmt.Errorf("%d sockets, want %d", n, kept)
		}
		return nil
	})
	// Un-enrolled: nobody keeps anything of the pod.
	w.must(w.Kernel.Unhook(w.ctx, server.Handle()))
	w.must(n2.Agent.Delete(w.ctx, server.UID))
	for _, port := range []int{15001, 15006} {
		w.eventually(fmt.Sprintf("port %d is closed", port), func() error {
			if open, err := listens(server, port); err != nil || open {
				return fmt.Errorf("open %v, %v", open, err)
			}
			return nil
		})
	}
	if n := n2.Depot.Len(); n != 0 {
		t.Errorf("the agent keeps %d sockets of a pod that is not captured", n)
	}
}

// TestSuccessorDies has a proxy take over and then crash: the one before, which is there yet, serves again.
func TestSuccessorDies(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	r := w.relay(n2)
	client, server, plain := w.captured(n1, "client"), w.captured(n2, "server"), w.pod(n1, "plain")
	w.listen(server, ":8080", echo)
	w.settle()
	older, to := w.proxies[1], addr(server, false, 8080)
	kept := w.hold(client, to)
	for range 3 {
		newer := w.start(r.nodes[1])
		before := w.opened(older)
		const calls = 20 // in plain, so that each is a connection to the pod
		for range calls {
			w.expect(plain, to, plain.IPv4)
		}
		w.eventually("the newer proxy has served all of them", func() error {
			if n := w.opened(newer); n != calls {
				return fmt.Errorf("%d of %d", n, calls)
			}
			return nil
		})
		if n := w.opened(older) - before; n != 0 {
			t.Errorf("the older proxy has served %d connections that came after the takeover", n)
		}
		newer.Kill()
		for range 5 {
			w.expect(plain, to, plain.IPv4)
			w.expect(client, to, client.IPv4)
		}
		w.eventually("the older proxy can be taken over from again", func() error {
			c, err := net.Dial("unixpacket", n2.Socket+api.HandoverSuffix)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	if err := kept.works(); err != nil {
		t.Errorf("connection of the time before: %v", err)
	}
}

// opened counts the connections in plain that a proxy has served to their end, by its log.
func (w *world) opened(p *lab.Proxy) int {
	body, err := os.ReadFile(p.Log)
	w.must(err)
	return strings.Count(string(body), "src.workload=plain")
}

// TestHungPredecessor stops a proxy's process: the next one does not wait for it for long, and listens beside it.
func TestHungPredecessor(t *testing.T) {
	w := newWorld(t)
	n1 := w.node("node1")
	n2, err := w.AddOldNode("node2") // the agent has no sockets to give, either
	w.must(err)
	w.start(n2)
	r := w.relay(n2)
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	old, to := w.proxies[1], addr(server, false, 8080)
	w.expect(client, to, client.IPv4)
	w.must(old.Signal(syscall.SIGSTOP))
	newer := r.start()
	w.logged(newer, "cannot take over")
	w.eventually("the pod's sockets are made anew", func() error {
		if got := w.series(newer, `ambit_handover_sockets_total{source="new"}`); got != "3" {
			return fmt.Errorf("%q, want 3", got)
		}
		return nil
	})
	// As long as the old one hangs, the kernel goes on giving it a share of what comes. Whoever ends it need not wait for anybody.
	old.Kill()
	w.eventually("new connections work", func() error {
		_, err := call(client, to, "hello")
		return err
	})
	for range 5 {
		w.expect(client, to, client.IPv4)
	}
}
