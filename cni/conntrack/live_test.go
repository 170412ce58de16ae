package conntrack

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/cni/netnstest"
	"github.com/ambit-mesh/ambit/cni/rules"
)

// world is a pod and a peer with a link between them, and what a node proxy would be: listeners in the pod on 15001 and
// 15006 that swallow what they get.
type world struct {
	pod, peer ns.NetNS
	kernel    *rules.Kernel
	set       rules.Set
	link      *netnstest.Capture
	proxied   atomic.Int64 // connections that the proxy accepted
}

// patience bounds every wait for what must come.
const patience = 30 * time.Second

const (
	podV4, peerV4 = "10.77.0.2", "10.77.0.1"
	podV6, peerV6 = "fd77::2", "fd77::1"
)

// eachKind runs the test with each kind of iptables.
func eachKind(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	netnstest.Need(t, "iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy", "conntrack")
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			host := netnstest.New(t)
			netnstest.Run(t, host, "iptables-"+kind+" -A FORWARD -j ACCEPT")
			k, err := rules.NewKernel(t.Context(), host)
			if err != nil {
				t.Fatal(err)
			}
			w := &world{pod: netnstest.New(t), peer: netnstest.New(t), kernel: k, set: rules.For(rules.Config{IPv6: true})}
			netnstest.Link(t, w.pod, w.peer, "pod0", []string{podV4 + "/24", podV6 + "/64"}, []string{peerV4 + "/24", peerV6 + "/64"})
			w.link = netnstest.Sniff(t, w.peer, "pod0")
			test(t, w)
		})
	}
}

// proxy starts the listeners in the pod; they accept, and keep what they accepted.
func (w *world) proxy(t *testing.T) {
	for _, port := range []string{":15001", ":15006"} {
		ln := netnstest.Listen(t, w.pod, port)
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				w.proxied.Add(1)
				go func() {
					io.Copy(io.Discard, conn)
				}()
			}
		}()
	}
}

// enrol does to the live pod what the agent does.
func (w *world) enrol(t *testing.T) {
	t.Helper()
	if err := w.kernel.Fill(t.Context(), w.pod, w.set); err != nil {
		t.Fatal(err)
	}
	w.proxy(t)
	if _, err := (Kernel{}).Exempt(w.pod); err != nil {
		t.Fatal(err)
	}
	if err := w.kernel.Hook(t.Context(), w.pod, w.set); err != nil {
		t.Fatal(err)
	}
}

// connection is one TCP connection from a dialler to a listener, seen from both ends.
type connection struct {
	name           string
	dialer, server *net.TCPConn
}

func (w *world) connect(t *testing.T, name string, from, to ns.NetNS, listen, dial string) connection {
	t.Helper()
	ln := netnstest.Listen(t, to, listen)
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			accepted <- conn
		}
	}()
	c := connection{name: name, dialer: netnstest.Dial(t, from, net.JoinHostPort(dial, portOf(ln)))}
	select {
	case conn := <-accepted:
		c.server = conn.(*net.TCPConn)
		t.Cleanup(func() { conn.Close() })
	case <-time.After(patience):
		t.Fatalf("%s: not accepted", name)
	}
	return c
}

func portOf(ln net.Listener) string {
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// send proves that a line goes from one end to the other.
func send(t *testing.T, what string, from, to net.Conn) {
	t.Helper()
	line := what + "\n"
	if _, err := io.WriteString(from, line); err != nil {
		t.Errorf("%s: write: %v", what, err)
		return
	}
	if err := to.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got, err := bufio.NewReader(to).ReadString('\n')
	if err != nil || got != line {
		t.Errorf("%s: got %q, %v", what, got, err)
	}
}

func eof(t *testing.T, what string, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%s: read %d, %v; want the end", what, n, err)
	}
}

// TestEnrolmentLeavesEstablishedConnectionsAlone: those of every family and direction, busy, idle, half-closed by either
// side, and in the middle of their handshake. Connections made afterwards go to the proxy.
func TestEnrolmentLeavesEstablishedConnectionsAlone(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		type way struct {
			name         string
			from, to     ns.NetNS
			listen, dial string
		}
		ways := []way{
			{"out v4", w.pod, w.peer, peerV4 + ":0", peerV4},
			{"out v6", w.pod, w.peer, "[" + peerV6 + "]:0", peerV6},
			{"in v4", w.peer, w.pod, podV4 + ":0", podV4},
			{"in v6", w.peer, w.pod, "[" + podV6 + "]:0", podV6},
			{"in v4-mapped", w.peer, w.pod, ":0", podV4},
		}
		var idle, busy, dialerClosed, serverClosed []connection
		for _, y := range ways {
			for shape, list := range map[string]*[]connection{"idle": &idle, "busy": &busy, "dialer closed": &dialerClosed, "server closed": &serverClosed} {
				*list = append(*list, w.connect(t, y.name+" "+shape, y.from, y.to, y.listen, y.dial))
			}
		}
		for _, c := range busy {
			send(t, c.name+" before", c.dialer, c.server)
		}
		for _, c := range dialerClosed {
			c.dialer.CloseWrite()
			eof(t, c.name, c.server)
		}
		for _, c := range serverClosed {
			c.server.CloseWrite()
			eof(t, c.name, c.dialer)
		}
		w.enrol(t)
		for _, c := range append(idle, busy...) {
			send(t, c.name+" forth", c.dialer, c.server)
			send(t, c.name+" back", c.server, c.dialer)
		}
		for _, c := range dialerClosed {
			send(t, c.name+" back", c.server, c.dialer)
			c.server.CloseWrite()
			eof(t, c.name, c.dialer)
		}
		for _, c := range serverClosed {
			send(t, c.name+" forth", c.dialer, c.server)
			c.dialer.CloseWrite()
			eof(t, c.name, c.server)
		}
		if n := w.proxied.Load(); n != 0 {
			t.Errorf("the proxy got %d connections too early", n)
		}
		for i, y := range ways {
			ln := netnstest.Listen(t, y.to, y.listen)
			conn := netnstest.Dial(t, y.from, net.JoinHostPort(y.dial, portOf(ln)))
			fmt.Fprintf(conn, "new %s\n", y.name)
			netnstest.Eventually(t, patience, "new connection "+y.name+" at the proxy", func() bool { return w.proxied.Load() == int64(i+1) })
		}
		if w.link.Contains(t, "new out") {
			t.Error("payload of a new connection in clear on the link")
		}
	})
}

// TestEnrolmentInMidHandshake: a connection whose SYN left before, and one whose SYN came before.
func TestEnrolmentInMidHandshake(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		// The peer does not answer for a while: its answers are dropped, so both sides stay in their handshake.
		out, in := netnstest.Listen(t, w.peer, peerV4+":0"), netnstest.Listen(t, w.pod, podV4+":0")
		netnstest.Run(t, w.peer, "iptables-nft -A OUTPUT -p tcp --tcp-flags SYN,ACK SYN,ACK -j DROP")
		netnstest.Run(t, w.peer, "iptables-nft -A OUTPUT -p tcp --tcp-flags SYN,ACK ACK -j DROP")
		dialed := make(chan error, 2)
		for _, d := range []struct {
			from ns.NetNS
			to   net.Listener
		}{{w.pod, out}, {w.peer, in}} {
			go func() {
				conn, err := netnstest.TryDial(d.from, d.to.Addr().String())
				if err == nil {
					t.Cleanup(func() { conn.Close() })
					_, err = conn.Write([]byte("x"))
				}
				dialed <- err
			}()
		}
		states := func() string { return netnstest.Run(t, w.pod, "ss -Htan state syn-sent state syn-recv") }
		netnstest.Eventually(t, patience, "both handshakes begun", func() bool { return len(strings.Split(strings.TrimSpace(states()), "\n")) == 2 })
		w.enrol(t)
		netnstest.Run(t, w.peer, "iptables-nft -F OUTPUT")
		for _, ln := range []net.Listener{out, in} {
			ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
			conn, err := ln.Accept()
			if err != nil {
				t.Fatalf("%s: %v", ln.Addr(), err)
			}
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Errorf("%s: read: %v", ln.Addr(), err)
			}
		}
		for range 2 {
			if err := <-dialed; err != nil {
				t.Error(err)
			}
		}
		if n := w.proxied.Load(); n != 0 {
			t.Errorf("the proxy got %d of them", n)
		}
	})
}

// sendWithFIN sends a line in one segment with the end of the stream.
func sendWithFIN(t *testing.T, c *net.TCPConn, line string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 1); err == nil {
			if _, err = unix.Write(int(fd), []byte(line)); err == nil {
				err = unix.Shutdown(int(fd), unix.SHUT_WR)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLostEntriesNeverMeanPlaintext: the entries of redirected connections are deleted, and the application goes on
// sending, in every way that connection tracking treats differently.
func TestLostEntriesNeverMeanPlaintext(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		for _, loose := range []string{"1", "0"} {
			for _, to := range []string{peerV4, peerV6} {
				for name, act := range map[string]func(t *testing.T, c *net.TCPConn, line string){
					"data":          func(t *testing.T, c *net.TCPConn, line string) { io.WriteString(c, line) },
					"data with FIN": sendWithFIN,
					"urgent data": func(t *testing.T, c *net.TCPConn, line string) {
						raw, _ := c.SyscallConn()
						raw.Control(func(fd uintptr) { unix.Sendto(int(fd), []byte(line), unix.MSG_OOB, nil) })
					},
				} {
					t.Run(fmt.Sprintf("%s to %s, loose %s", name, to, loose), func(t *testing.T) {
						w := world{pod: netnstest.New(t), peer: netnstest.New(t), kernel: w.kernel, set: w.set}
						netnstest.Link(t, w.pod, w.peer, "pod0", []string{podV4 + "/24", podV6 + "/64"}, []string{peerV4 + "/24", peerV6 + "/64"})
						link := netnstest.Sniff(t, w.peer, "pod0")
						w.enrol(t)
						ln := netnstest.Listen(t, w.peer, "["+strings.TrimPrefix(to, "::ffff:")+"]:0")
						conn := netnstest.Dial(t, w.pod, net.JoinHostPort(to, portOf(ln)))
						io.WriteString(conn, "secret first\n")
						netnstest.Eventually(t, patience, "first line at the proxy", func() bool { return w.proxied.Load() == 1 })
						set(t, w.pod, "nf_conntrack_tcp_loose", loose)
						netnstest.Run(t, w.pod, "conntrack -F")
						before := netnstest.Run(t, w.pod, "cat /proc/net/snmp")
						act(t, conn, "secret second\n")
						io.WriteString(conn, "secret third\n")
						// The stack has sent it at least twice if nobody took it.
						netnstest.Eventually(t, patience, "segments left the socket", func() bool {
							return netnstest.Run(t, w.pod, "cat /proc/net/snmp") != before
						})
						conn.Close()
						netnstest.Eventually(t, patience, "time for a retransmission", elapsed(700*time.Millisecond))
						if link.Contains(t, "secret") {
							t.Error("payload in clear on the link")
						}
					})
				}
			}
		}
	})
}

func elapsed(d time.Duration) func() bool {
	begin := time.Now()
	return func() bool { return time.Since(begin) > d }
}

func set(t *testing.T, netns ns.NetNS, sysctl, value string) {
	t.Helper()
	netnstest.In(t, netns, func() error {
		return os.WriteFile("/proc/sys/net/netfilter/"+sysctl, []byte(value), 0o644)
	})
}
