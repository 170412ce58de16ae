package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// held is a connection to an echo that is kept open and can be asked whether it works.
type held struct{ *net.TCPConn }

func (w *world) hold(from *lab.Pod, to string) *held {
	w.t.Helper()
	c, err := from.Dial(to)
	w.must(err)
	w.t.Cleanup(func() { c.Close() })
	h := &held{c}
	buf := make([]byte, 1)
	for buf[0] != '\n' { // the echo's first line
		c.SetDeadline(time.Now().Add(ioTimeout))
		if _, err := io.ReadFull(c, buf); err != nil {
			w.t.Fatalf("%s to %s: %v", from.Name, to, err)
		}
	}
	return h
}

// works exchanges a byte.
func (h *held) works() error {
	h.SetDeadline(time.Now().Add(ioTimeout))
	if _, err := h.Write([]byte{'x'}); err != nil {
		return err
	}
	_, err := io.ReadFull(h, make([]byte, 1))
	return err
}

// load opens connections one after another until it is stopped, and counts failures.
type load struct {
	stop          chan struct{}
	once          sync.Once
	done          sync.WaitGroup
	tried, failed atomic.Int64
	mu            sync.Mutex
	first         error
	pause         time.Duration
}

// startLoad opens connections at about a rate per second, each with one exchange. On a machine that cannot keep up it opens
// fewer, so that none has to wait for those before it until it fails.
func startLoad(from *lab.Pod, to string, perSecond int) *load {
	l := &load{stop: make(chan struct{}), pause: time.Second / time.Duration(perSecond)}
	slots := make(chan struct{}, perSecond)
	l.done.Go(func() {
		tick := time.NewTicker(l.pause)
		defer tick.Stop()
		var calls sync.WaitGroup
		defer calls.Wait()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			select {
			case slots <- struct{}{}:
			default:
				continue
			}
			calls.Go(func() {
				defer func() { <-slots }()
				l.tried.Add(1)
				if _, err := call(from, to, "hello"); err != nil {
					l.failed.Add(1)
					l.mu.Lock()
					if l.first == nil {
						l.first = err
					}
					l.mu.Unlock()
				}
			})
		}
	})
	return l
}

// end stops the load and fails the test if a connection failed. A second call does nothing.
func (l *load) end(t *testing.T) {
	t.Helper()
	ended := true
	l.once.Do(func() { close(l.stop); ended = false })
	l.done.Wait()
	if ended {
		return
	}
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d new connections failed, the first with: %v", n, l.tried.Load(), l.first)
	}
	t.Logf("%d new connections", l.tried.Load())
}

// TestReplaceProxy upgrades a node's proxy several times under load: the new one takes over, the old one drains and ends.
// The load comes for the node's pod in tunnels and in plain, and from it.
func TestReplaceProxy(t *testing.T) {
	const rolls, perSecond, perRoll = 4, 100, 200
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server, plain := w.captured(n1, "client"), w.captured(n2, "server"), w.pod(n1, "plain")
	w.listen(server, ":8080", echo)
	w.listen(plain, ":8080", echo)
	w.settle()
	to := addr(server, false, 8080)
	loads := []*load{
		startLoad(client, to, perSecond), startLoad(plain, to, perSecond), startLoad(server, addr(plain, false, 8080), perSecond),
	}
	for _, l := range loads {
		defer l.end(t)
	}
	old := w.proxies[1]
	for roll := range rolls {
		kept := []*held{w.hold(client, to), w.hold(plain, to), w.hold(server, addr(plain, false, 8080))}
		// As in Kubernetes, the new proxy has a network namespace of its own.
		host, err := w.AddHost(n2.Name)
		w.must(err)
		second := *n2
		second.Host = host
		newer := w.start(&second)
		w.must(old.Signal(syscall.SIGTERM))
		w.eventually("the old proxy is not ready", func() error {
			if code, _, err := old.Get(w.ctx, 15021, "/healthz/ready"); err == nil && code == http.StatusOK {
				return errors.New("ready")
			}
			return nil
		})
		w.expect(client, to, client.IPv4)
		w.logged(newer, "inbound", client.Identity())
		for _, l := range loads {
			w.eventually("connections are opened after the takeover", func() error {
				if n, enough := l.tried.Load(), int64((roll+1)*perRoll); n < enough {
					return fmt.Errorf("%d of %d", n, enough)
				}
				return nil
			})
		}
		for i, h := range kept {
			if err := h.works(); err != nil {
				t.Errorf("connection %d of the time before: %v", i, err)
			}
			h.Close()
		}
		// With its last connection gone the old one ends by itself, well before its grace period.
		ctx, cancel := context.WithTimeout(w.ctx, patience)
		defer cancel()
		if err := old.Wait(ctx); err != nil {
			t.Errorf("old proxy: %v\n%s", err, old.LogTail())
		}
		old = newer
	}
	w.expect(client, to, client.IPv4)
}

// TestTwoProxies has two proxies on a node: the newer one takes what is new; when it crashes, the older one serves all again.
func TestTwoProxies(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	older := w.proxies[1]
	client, first := w.captured(n1, "client"), w.captured(n2, "first")
	w.listen(first, ":8080", echo)
	host, err := w.AddHost(n2.Name)
	w.must(err)
	second := *n2
	second.Host = host
	newer := w.start(&second)
	late := w.captured(n2, "late")
	w.listen(late, ":8080", echo)
	w.settle()
	serves := func(p *lab.Proxy) string {
		var names []string
		for _, s := range w.dump(p)["workloadState"].(map[string]any) {
			names = append(names, s.(map[string]any)["info"].(map[string]any)["name"].(string))
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	if got := serves(older); got != "first" {
		t.Errorf("the older proxy serves %q, want first", got)
	}
	if got := serves(newer); got != "first late" {
		t.Errorf("the newer proxy serves %q, want first late", got)
	}
	for _, p := range []*lab.Pod{first, late} {
		w.expect(client, addr(p, false, 8080), client.IPv4)
	}
	newer.Kill()
	w.expect(client, addr(first, false, 8080), client.IPv4)
	w.eventually("the older proxy serves what the newer one did", func() error {
		if got := serves(older); got != "first late" {
			return errors.New(got)
		}
		return nil
	})
	w.expect(client, addr(late, false, 8080), client.IPv4)
}

// TestGracePeriodEnds keeps a connection open past a proxy's grace period.
func TestGracePeriodEnds(t *testing.T) {
	w := newWorld(t)
	n1 := w.node("node1")
	// With an agent that keeps no sockets, the port is closed by the proxy's end and new connections do not wait.
	n2, err := w.AddOldNode("node2")
	w.must(err)
	w.start(n2, "CONNECTION_TERMINATION_DEADLINE=2s")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	kept := w.hold(client, addr(server, false, 8080))
	old := w.proxies[1]
	w.must(old.Signal(syscall.SIGTERM))
	w.eventually("it ends its listeners", func() error {
		c, err := client.Dial(addr(server, false, 8080))
		if err != nil {
			return nil
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(ioTimeout))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			return errors.New("a new connection works")
		}
		return nil
	})
	if err := kept.works(); err != nil {
		t.Errorf("connection within the grace period: %v", err)
	}
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	if err := old.Wait(ctx); err != nil {
		t.Errorf("proxy: %v\n%s", err, old.LogTail())
	}
	if err := kept.works(); err == nil {
		t.Error("the connection outlived the proxy")
	}
}

// TestQuit ends a proxy by its admin endpoint.
func TestQuit(t *testing.T) {
	w := newWorld(t)
	w.node("node1")
	if code, _, err := w.proxies[0].Post(w.ctx, 15000, "/quitquitquit"); err != nil || code != http.StatusOK {
		t.Fatalf("status %d, %v", code, err)
	}
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	if err := w.proxies[0].Wait(ctx); err != nil {
		t.Error(err)
	}
}

// listens tells whether something listens on a port of a pod.
func listens(p *lab.Pod, port int) (bool, error) {
	found := false
	err := p.Do(func() error {
		for _, path := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
			table, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(table)) {
				f := strings.Fields(line)
				const stateListen = "0A"
				if len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == stateListen {
					found = true
				}
			}
		}
		return nil
	})
	return found, err
}

// TestDeleteDrains un-enrols a pod whose namespace lives: capture ends at once, what exists goes on, and the tunnel port
// stays for peers that have not heard of it, until nothing is left.
func TestDeleteDrains(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.listen(client, ":8080", echo)
	w.settle()
	into, out := w.hold(client, addr(server, false, 8080)), w.hold(server, addr(client, false, 8080))
	all := func(when string) {
		t.Helper()
		if err := into.works(); err != nil {
			t.Errorf("%s, the connection to the pod: %v", when, err)
		}
		if err := out.works(); err != nil {
			t.Errorf("%s, the connection from the pod: %v", when, err)
		}
	}
	w.must(w.Kernel.Unhook(w.ctx, server.Handle()))
	w.must(n2.Agent.Delete(w.ctx, server.UID))
	w.eventually("capture ports are closed", func() error {
		for _, port := range []int{15001, 15006} {
			if open, err := listens(server, port); err != nil || open {
				return fmt.Errorf("port %d: open %v, %v", port, open, err)
			}
		}
		return nil
	})
	if open, err := listens(server, 15008); err != nil || !open {
		t.Errorf("tunnel port: open %v, %v; want it open for peers that have not heard", open, err)
	}
	w.expect(client, addr(server, false, 8080), client.IPv4)
	w.expect(server, addr(client, false, 8080), server.IPv4)
	all("while it drains")
	// Taken back, it serves as before.
	w.must(w.Kernel.Hook(w.ctx, server.Handle(), rules.For(rules.Config{IPv6: true})))
	w.must(server.Offer(w.ctx))
	for _, port := range []int{15001, 15006, 15008} {
		if open, err := listens(server, port); err != nil || !open {
			t.Errorf("after the pod was added again, port %d: open %v, %v", port, open, err)
		}
	}
	all("after the pod was added again")
	w.expect(client, addr(server, false, 8080), client.IPv4)
	w.expect(server, addr(client, false, 8080), server.IPv4)
	// Deleted for good: the end comes with the last connection, but not before peers can have heard.
	w.must(w.Kernel.Unhook(w.ctx, server.Handle()))
	w.must(n2.Agent.Delete(w.ctx, server.UID))
	into.Close()
	out.Close()
	w.eventually("the tunnel port is closed", func() error {
		if open, err := listens(server, 15008); err != nil || open {
			return fmt.Errorf("open %v, %v", open, err)
		}
		return nil
	})
	w.logged(w.proxies[1], "no longer served", "server")
}

// TestDeadPodIsDropped takes a pod down as the container runtime does, interface first, with connections open: its proxy does
// not wait for them.
func TestDeadPodIsDropped(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	w.hold(client, addr(server, false, 8080))
	w.must(server.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}))
	w.must(n2.Agent.Delete(w.ctx, server.UID))
	w.logged(w.proxies[1], "no longer served", "server") // of a pod that lives it would be served while its connection is open
}

var goroutines = regexp.MustCompile(`goroutine profile: total (\d+)`)

// usage counts a proxy's goroutines and descriptors.
func (w *world) usage(p *lab.Proxy) (routines, files int) {
	w.t.Helper()
	_, body, err := p.Get(w.ctx, 15000, "/debug/pprof/goroutine?debug=1")
	w.must(err)
	m := goroutines.FindStringSubmatch(body)
	if m == nil {
		w.t.Fatalf("no goroutine profile: %.200s", body)
	}
	routines, _ = strconv.Atoi(m[1])
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	w.must(err)
	return routines, len(fds)
}

// TestNothingLeaks runs every kind of connection, and failures, and then wants goroutines and descriptors back.
func TestNothingLeaks(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1", "POOL_UNUSED_RELEASE_TIMEOUT=1s"), w.node("node2", "POOL_UNUSED_RELEASE_TIMEOUT=1s")
	client, server, plain := w.captured(n1, "client"), w.captured(n2, "server"), w.pod(n2, "plain")
	for _, p := range []*lab.Pod{server, plain} {
		w.listen(p, ":8080", echo)
	}
	w.settle()
	type count struct{ routines, files int }
	var base [2]count
	for i, p := range w.proxies {
		base[i].routines, base[i].files = w.usage(p)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 10 {
				for _, c := range []struct {
					from *lab.Pod
					to   string
				}{
					{client, addr(server, false, 8080)}, {client, addr(plain, true, 8080)}, {plain, addr(server, false, 8080)},
					{client, addr(server, false, 9999)}, {client, addr(plain, false, 9999)}, {plain, addr(server, true, 9999)},
				} {
					call(c.from, c.to, "hello") // some are to fail
				}
			}
		})
	}
	wg.Wait()
	for i, p := range w.proxies {
		w.eventually("proxy on "+p.Node.Name+" is back at its base line", func() error {
			// The look itself takes a connection and its goroutines; a few come and go.
			const slack = 4
			routines, files := w.usage(p)
			if routines > base[i].routines+slack || files > base[i].files+slack {
				return fmt.Errorf("%d goroutines, %d descriptors; at the start %d and %d", routines, files, base[i].routines, base[i].files)
			}
			return nil
		})
	}
	// A proxy that is told to end does, with success.
	for _, p := range w.proxies {
		w.must(p.Signal(syscall.SIGTERM))
	}
	for _, p := range w.proxies {
		ctx, cancel := context.WithTimeout(w.ctx, patience)
		defer cancel()
		if err := p.Wait(ctx); err != nil {
			t.Errorf("proxy on %s: %v", p.Node.Name, err)
		}
	}
}
