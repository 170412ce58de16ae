package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/e2e/lab"
)

// TestBoundOfConnections lets a pod open one more connection than it may have: that one is reset and counted, its neighbour
// on the node is not concerned, and with the end of another it may open one again.
func TestBoundOfConnections(t *testing.T) {
	const most = 5
	w := newWorld(t)
	n1, n2 := w.node("node1", fmt.Sprintf("AMBIT_POD_MAX_CONNECTIONS=%d", most)), w.node("node2")
	greedy, neighbour, server := w.captured(n1, "greedy"), w.captured(n1, "neighbour"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	var held []*held
	for range most {
		held = append(held, w.hold(greedy, addr(server, false, 8080)))
	}
	w.refused(greedy, addr(server, false, 8080))
	w.expect(neighbour, addr(server, false, 8080), neighbour.IPv4)
	w.eventually("the refused connection is counted", func() error {
		if n := w.metric(w.proxies[0], "ambit_connections_refused_total", `bound="connections"`); n == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	for i, c := range held {
		if err := c.works(); err != nil {
			t.Errorf("connection %d, within the bound: %v", i, err)
		}
	}
	held[0].Close()
	w.eventually("the pod may open a connection again", func() error {
		_, err := call(greedy, addr(server, false, 8080), "hello")
		return err
	})
}

// TestBoundOfTunnels lets a pod have two tunnels to peers. A third one is refused with its reason, until one of them is not used.
func TestBoundOfTunnels(t *testing.T) {
	const most = 2
	w := newWorld(t)
	n1, n2 := w.node("node1", fmt.Sprintf("AMBIT_POD_MAX_TUNNELS=%d", most)), w.node("node2")
	greedy, neighbour := w.captured(n1, "greedy"), w.captured(n1, "neighbour")
	var servers []*lab.Pod
	for i := range most + 1 {
		s := w.captured(n2, fmt.Sprintf("server%d", i))
		w.listen(s, ":8080", echo)
		servers = append(servers, s)
	}
	w.settle()
	var holds []*held
	for _, s := range servers[:most] {
		holds = append(holds, w.hold(greedy, addr(s, false, 8080)))
	}
	third := addr(servers[most], false, 8080)
	w.refused(greedy, third)
	p := w.proxies[0]
	w.logged(p, "AMBIT_POD_MAX_TUNNELS", "response_flags=POD_LIMIT")
	if n := w.metric(p, "ambit_connections_refused_total", `bound="tunnels"`); n == 0 {
		t.Error("no refused tunnel was counted")
	}
	w.expect(greedy, addr(servers[0], false, 8080), greedy.IPv4) // in a tunnel that there is
	w.expect(neighbour, third, neighbour.IPv4)
	for i, c := range holds {
		if err := c.works(); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	holds[0].Close()
	w.eventually("a tunnel that is not used makes place", func() error {
		_, err := call(greedy, third, "hello")
		return err
	})
	if err := holds[1].works(); err != nil {
		t.Errorf("the connection in the other tunnel: %v", err)
	}
}

// TestOutOfDescriptors takes a proxy's descriptors away. New connections wait, without the proxy being busy with that, and are
// served once there are descriptors again.
func TestOutOfDescriptors(t *testing.T) {
	const waiting = 20
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	w.expect(client, addr(server, false, 8080), client.IPv4)
	p := w.proxies[0]

	var before unix.Rlimit
	w.must(unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, nil, &before))
	w.must(unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max}, nil))
	answers := make(chan error, waiting)
	for range waiting {
		go func() {
			_, err := call(client, addr(server, false, 8080), "hello")
			answers <- err
		}()
	}
	w.logged(p, "cannot accept connections", "too many open files")
	const look = 3 * time.Second
	used := cpuTime(w, p)
	<-time.After(look)
	if used = cpuTime(w, p) - used; used > look/3 {
		t.Errorf("in %v without descriptors the proxy used %v of processor time", look, used)
	}
	body, err := os.ReadFile(p.Log)
	w.must(err)
	if n := strings.Count(string(body), "cannot accept connections"); n > 2 {
		t.Errorf("it was said %d times in %v that connections cannot be accepted", n, look)
	}
	w.must(unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &before, nil))
	for range waiting {
		if err := <-answers; err != nil {
			t.Errorf("a connection that had to wait: %v", err)
		}
	}
	if n := w.metric(p, "ambit_accept_errors_total", `error="EMFILE"`); n == 0 {
		t.Error("no failure to accept was counted")
	}
}

// TestHalfClosedConnections leaves half-closed connections in silence. Those whose servers are gone without a word are ended
// soon, told of the end or not; the other one carries what its server says after a silence that is longer than that.
func TestHalfClosedConnections(t *testing.T) {
	const (
		probe = "AMBIT_HALF_CLOSE_PROBE=1s" // with three probes, a second apart, after five seconds
		soon  = time.Minute
	)
	w := newWorld(t)
	n1, n2 := w.node("node1", probe), w.node("node2", probe)
	client, lively, gone, left := w.captured(n1, "client"), w.pod(n2, "lively"), w.pod(n2, "gone"), w.pod(n2, "left")
	speak := make(chan struct{})
	serve := func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(io.Discard, c)
		<-speak
		io.WriteString(c, "still here")
	}
	w.listen(lively, ":9001", serve)
	w.listen(gone, ":9001", serve)
	w.listen(left, ":9002", serve)
	w.settle()
	open := func(p *lab.Pod) *net.TCPConn {
		c, err := client.Dial(addr(p, false, 9001))
		w.must(err)
		t.Cleanup(func() { c.Close() })
		_, err = io.WriteString(c, "all")
		w.must(err)
		w.must(c.CloseWrite())
		return c
	}
	// The last one's peer is gone before it is told of the end.
	untold, err := client.Dial(addr(left, false, 9002))
	w.must(err)
	t.Cleanup(func() { untold.Close() })
	_, err = io.WriteString(untold, "all")
	w.must(err)
	good, bad := open(lively), open(gone)
	// What is not acknowledged yet would be sent again and again, and not probed for.
	w.eventually("the ends of both, and of the proxy's two, are acknowledged", func() error {
		const finWait2, port9001 = "05", ":2329"
		var table []byte
		err := client.Do(func() (err error) {
			table, err = os.ReadFile("/proc/thread-self/net/tcp")
			return err
		})
		n := 0
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[2], port9001) && f[3] == finWait2 {
				n++
			}
		}
		if err == nil && n != 4 {
			err = fmt.Errorf("%d are", n)
		}
		return err
	})
	for _, p := range []*lab.Pod{gone, left} {
		w.must(p.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		}))
	}
	w.must(untold.CloseWrite())
	start := time.Now()
	for name, c := range map[string]*net.TCPConn{"knew of the end": bad, "was not told of the end": untold} {
		c.SetDeadline(start.Add(soon))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client of a server that is gone, which %s: %v after %v, want connection reset", name, err, time.Since(start))
		}
		t.Logf("%s: it was ended within %v", name, time.Since(start))
	}
	close(speak)
	good.SetDeadline(time.Now().Add(ioTimeout))
	if all, err := io.ReadAll(good); err != nil || string(all) != "still here" {
		t.Errorf("the client of the server that lives got %q, %v", all, err)
	}
}
