package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// replica is a pod with an echo that can stop.
type replica struct {
	*lab.Pod
	listener *net.TCPListener
	stop     chan struct{}
	stopped  chan struct{}
}

// replica makes a captured pod that serves an echo on port 8080.
func (w *world) replica(n *lab.Node, name string) *replica {
	w.t.Helper()
	r := &replica{Pod: w.captured(n, name), stop: make(chan struct{}), stopped: make(chan struct{})}
	ln, err := r.Listen(":8080")
	w.must(err)
	w.t.Cleanup(func() { ln.Close() })
	r.listener = ln.(*net.TCPListener)
	go r.serve()
	return r
}

// serve accepts until it is to stop, and then closes its port as soon as nobody waits there: connections that the kernel has
// taken already must be served, or they are reset.
func (r *replica) serve() {
	defer close(r.stopped)
	defer r.listener.Close()
	for {
		r.listener.SetDeadline(time.Now().Add(5 * time.Millisecond))
		c, err := r.listener.AcceptTCP()
		switch {
		case err == nil:
			go echo(c) // ends with the connection
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			select {
			case <-r.stop:
				return
			default:
			}
		}
	}
}

// close stops listening; connections that are open go on.
func (r *replica) close() {
	close(r.stop)
	<-r.stopped
}

// unhealthy is a workload as the control plane tells of it once its pod is terminating.
func unhealthy(a *workload.Address) *workload.Address {
	a.GetWorkload().Status = workload.WorkloadStatus_UNHEALTHY
	return a
}

// gone is the end of a pod: its interface, then its capture, then what discovery knows of it.
func (w *world) gone(p *lab.Pod) {
	w.t.Helper()
	w.must(unlink(p))
	w.must(p.Node.Agent.Delete(w.ctx, p.UID))
	w.Control.Remove(lab.AddressType, p.Workload(true).GetUid())
}

// unlink takes a pod off the network at once; nobody is told.
func unlink(p *lab.Pod) error {
	return p.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

// more waits until a load has opened n more connections.
func (w *world) more(l *load, n int64) {
	w.t.Helper()
	enough := l.tried.Load() + n
	w.eventually("the load goes on", func() error {
		if tried := l.tried.Load(); tried < enough {
			return fmt.Errorf("%d of %d", tried, enough)
		}
		return nil
	})
}

// metric is the sum of a metric's series at a proxy.
func (w *world) metric(p *lab.Proxy, name string, labels ...string) float64 {
	w.t.Helper()
	return sum(w.get(p, 15020, "/metrics"), name, labels)
}

// TestRollout replaces the three endpoints of a service one by one, under 200 new connections a second, of which none may
// fail. A server that is asked to end either listens on until its clients have heard, or closes its port before anybody can
// have: then its connections are opened elsewhere.
func TestRollout(t *testing.T) {
	t.Run("listens on", func(t *testing.T) { testRollout(newWorld(t), false) })
	t.Run("closes at once", func(t *testing.T) { testRollout(newWorld(t), true) })
}

func testRollout(w *world, closesAtOnce bool) {
	const replicas, perSecond = 3, 200
	t, v6 := w.t, w.family == lab.IPv6
	n1, n2 := w.node("node1"), w.node("node2")
	// The one that holds connections is on the other node, so that they do not count as load here.
	client, holder := w.captured(n1, "client"), w.captured(n2, "holder")
	var old []*replica
	var pods []*lab.Pod
	for i := range replicas {
		old = append(old, w.replica([]*lab.Node{n2, n1}[i%2], fmt.Sprint("old", i)))
		pods = append(pods, old[i].Pod)
	}
	s := w.serve("web", 1, true, pods...)
	w.settle()
	l := startLoad(client, s.at(v6, 80), perSecond)
	defer l.end(t)
	for i, r := range old {
		w.more(l, perSecond/4)
		next := w.replica(r.Node, fmt.Sprint("new", i))
		w.Control.SetAddresses(s.endpoint(next.Pod, true))
		w.more(l, perSecond/2)
		kept := w.hold(holder, addr(r.Pod, v6, 8080))
		if closesAtOnce {
			r.close()
			w.more(l, perSecond/2)
		}
		w.Control.SetAddresses(unhealthy(s.endpoint(r.Pod, true)))
		w.more(l, perSecond)
		if !closesAtOnce {
			r.close()
		}
		w.more(l, perSecond/4)
		if err := kept.works(); err != nil {
			t.Errorf("a connection of before to %s: %v", r.Name, err)
		}
		kept.Close()
		w.gone(r.Pod)
	}
	w.more(l, perSecond/2)
	l.end(t)
	opened := w.metric(w.proxies[0], "ambit_connect_retries_total", `result="opened"`)
	ejected := w.metric(w.proxies[0], "ambit_endpoint_ejections_total", s.host)
	t.Logf("%v connections were opened at another endpoint than the first, %v endpoints ejected", opened, ejected)
	if closesAtOnce && (opened == 0 || ejected == 0) {
		t.Error("nothing was tried again or ejected: the test proves nothing")
	}
	if failed := w.metric(w.proxies[0], "ambit_connect_retries_total", `result="failed"`); failed > 0 {
		t.Errorf("%v connections found no endpoint", failed)
	}
}

// TestDeadEndpoint: an endpoint that answers nothing costs its clients a few seconds each, and then it is ejected.
func TestDeadEndpoint(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, alive, dead := w.captured(n1, "client"), w.replica(n2, "alive"), w.replica(n2, "dead")
	s := w.serve("web", 1, true, alive.Pod, dead.Pod)
	w.settle()
	w.must(unlink(dead.Pod))
	w.eventually("the endpoint is ejected", func() error {
		var calls sync.WaitGroup
		failures := make(chan error, 20)
		for range cap(failures) {
			calls.Go(func() {
				if _, err := call(client, s.at(false, 80), "hello"); err != nil {
					failures <- err
				}
			})
		}
		calls.Wait()
		if len(failures) > 0 {
			t.Fatalf("%d calls failed, one with %v", len(failures), <-failures)
		}
		if w.metric(w.proxies[0], "ambit_endpoints_ejected") != 1 {
			return errors.New("it is not")
		}
		return nil
	})
	start := time.Now()
	for range 10 {
		w.expect(client, s.at(false, 80), client.IPv4)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("ten calls take %v with the dead endpoint ejected", d)
	}
	w.logged(w.proxies[0], "endpoint ejected", "Kubernetes//Pod/default/dead")
}

// tunnels counts the connections to a pod's tunnel port that are open in another pod's namespace.
func tunnels(from, to *lab.Pod) (n int, err error) {
	ip := to.IPv4.As4()
	remote := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], 15008)
	err = from.Do(func() error {
		for _, path := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
			table, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(table)) {
				f := strings.Fields(line)
				const stateEstablished = "01"
				if len(f) > 3 && strings.HasSuffix(f[2], remote) && f[3] == stateEstablished {
					n++
				}
			}
		}
		return nil
	})
	return n, err
}

// TestTerminating: a pod that is terminating has its peers leave their tunnels, with what is in them going on; it is still
// reached by its own address, and its own connections work until it is gone, even after the control plane has forgotten it.
func TestTerminating(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(client, ":8080", echo)
	w.listen(server, ":8080", echo)
	s := w.serve("web", 1, true, server)
	w.settle()
	to := addr(server, false, 8080)
	kept := w.hold(client, to)
	want := func(what string, n int) {
		t.Helper()
		w.eventually(what, func() error {
			if got, err := tunnels(client, server); err != nil || got != n {
				return fmt.Errorf("%d tunnels, want %d (%v)", got, n, err)
			}
			return nil
		})
	}
	want("one tunnel", 1)
	w.Control.SetAddresses(unhealthy(s.endpoint(server, true)))
	w.settle()
	w.refused(client, s.at(false, 80))
	w.eventually("a new connection by the pod's address has a tunnel of its own", func() error {
		w.expect(client, to, client.IPv4)
		if n, err := tunnels(client, server); err != nil || n != 2 {
			return fmt.Errorf("%d tunnels, %v", n, err)
		}
		return nil
	})
	if err := kept.works(); err != nil {
		t.Errorf("connection of before: %v", err)
	}
	w.expect(server, addr(client, false, 8080), server.IPv4)
	kept.Close()
	want("the tunnel of before is closed with its last connection", 1)
	w.Control.Remove(lab.AddressType, server.Workload(true).GetUid())
	w.settle()
	want("the tunnel to a workload that is gone is closed", 0)
	w.expect(server, addr(client, false, 8080), server.IPv4)
}

// inherit gives a pod the addresses of another one, which is off the network, as a cluster does that uses them again.
func (w *world) inherit(heir, old *lab.Pod, mac net.HardwareAddr) {
	w.t.Helper()
	w.must(heir.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		// The same hardware address too, so that nobody's neighbour table is in the way.
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
		for _, a := range []string{old.IPv4.String() + "/16", old.IPv6.String() + "/64"} {
			parsed, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			parsed.Flags = unix.IFA_F_NODAD // usable at once
			if err := netlink.AddrAdd(link, parsed); err != nil {
				return err
			}
		}
		return nil
	}))
	heir.IPv4, heir.IPv6 = old.IPv4, old.IPv6
}

// mac is the hardware address of a pod.
func (w *world) mac(p *lab.Pod) (mac net.HardwareAddr) {
	w.t.Helper()
	w.must(p.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	}))
	return mac
}

// TestReusedAddress: the address of a pod that is gone is given to another one. As long as a client's proxy takes it for the
// old one, nothing is said to it; once the proxy knows, it is spoken to under its own identity.
func TestReusedAddress(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, old := w.captured(n1, "client"), w.captured(n2, "old")
	w.listen(old, ":8080", echo)
	w.settle()
	to := addr(old, false, 8080)
	w.expect(client, to, client.IPv4) // leaves a tunnel in the pool
	mac := w.mac(old)
	w.must(unlink(old))
	w.must(n2.Agent.Delete(w.ctx, old.UID))
	heir, err := n2.AddPod("heir")
	w.must(err)
	w.inherit(heir, old, mac)
	w.listen(heir, ":8080", echo)
	// The node of the new pod knows it, and the client's does not: the control plane tells of it under another address.
	known := heir.Workload(true)
	known.Addresses = [][]byte{{10, 77, 255, 254}}
	w.must(w.Kernel.Apply(w.ctx, heir.Handle(), rules.For(rules.Config{IPv6: true})))
	w.Control.SetAddresses(&workload.Address{Type: &workload.Address_Workload{Workload: known}})
	w.must(heir.Offer(w.ctx))
	w.settle()
	w.refused(client, to)
	w.logged(w.proxies[0], "error", old.Identity())
	w.Control.Remove(lab.AddressType, old.Workload(true).GetUid())
	w.Control.SetAddresses(heir.Address(true))
	w.settle()
	w.expect(client, to, client.IPv4)
	w.logged(w.proxies[1], "inbound", client.Identity(), "default/sa/heir")
}
