package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// newNamespace makes an empty network namespace with loopback up, and a handle on it.
func newNamespace(t *testing.T, home *Home) *Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: making network namespaces needs root")
	}
	fds := make(chan int, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			fds <- -1
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Errorf("open: %v", err)
		}
		fds <- fd
	}()
	fd := <-fds
	if fd < 0 {
		t.FailNow()
	}
	n, err := home.Namespace(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Do(loopbackUp); err != nil {
		t.Fatal(err)
	}
	return n
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

func openHome(t *testing.T) *Home {
	t.Helper()
	home, err := OpenHome()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { home.Close() })
	return home
}

func inode(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestSocketsBelongToTheNamespace(t *testing.T) {
	home := openHome(t)
	n := newNamespace(t, home)
	before := inode(t)

	// One port is listened to in this namespace and in that one.
	here, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	port := AddrPort(here.Addr()).Port()
	ln, err := n.ListenTCP(Listener{}, port)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	own, err := net.Dial("tcp", here.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if c, err := here.Accept(); err != nil || c.RemoteAddr().String() != own.LocalAddr().String() {
		t.Fatalf("a connection of this namespace is accepted as %v, %v", c, err)
	} else {
		defer c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, dst := range []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), netip.AddrPortFrom(netip.IPv6Loopback(), port)} {
		c, err := n.DialTCP(ctx, Dialer{Mark: 0x539}, dst)
		if err != nil {
			t.Fatalf("dial %s: %v", dst, err)
		}
		a, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OriginalDst(a); err != nil || got != dst {
			t.Errorf("original destination of what was not redirected = %v, %v; want %s", got, err, dst)
		}
		rc, _ := c.SyscallConn()
		if err := control(rc, func(fd int) error {
			if mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || mark != 0x539 {
				t.Errorf("SO_MARK = %#x, %v", mark, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		c.Close()
		a.Close()
	}
	if after := inode(t); after != before {
		t.Errorf("thread is in namespace %d, was in %d", after, before)
	}
	if _, err := n.DialTCP(ctx, Dialer{}, netip.MustParseAddrPort("127.0.0.1:8081")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial to a closed port: %v, want connection refused", err)
	}
}

func TestTransparentSource(t *testing.T) {
	home := openHome(t)
	n := newNamespace(t, home)
	ln, err := n.ListenTCP(Listener{}, 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// 127.1.2.3 is an address that loopback has, so no rule is needed to bring answers back.
	d := Dialer{Source: netip.MustParseAddrPort("127.1.2.3:20000"), Transparent: true}
	dst := netip.MustParseAddrPort("127.0.0.1:8080")
	var kept []net.Conn
	defer func() {
		for _, c := range kept {
			c.Close()
		}
	}()
	first, err := n.DialTCP(ctx, d, dst)
	if err != nil {
		t.Fatal(err)
	}
	kept = append(kept, first)
	a, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	kept = append(kept, a)
	if got := AddrPort(a.RemoteAddr()); got != d.Source {
		t.Errorf("application sees %s, want %s", got, d.Source)
	}
	// While the first lives, the same four addresses are an error that says so, and never a silent other port.
	if c, err := n.DialTCP(ctx, d, dst); !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
		if err == nil {
			c.Close()
		}
		t.Errorf("dial with the same four addresses: %v, want address in use", err)
	}
	// This side closes first, which leaves it in TIME_WAIT; the addresses can be used again at once.
	first.CloseWrite()
	a.Close()
	first.Read(make([]byte, 1))
	first.Close()
	again, err := n.DialTCP(ctx, d, dst)
	if err != nil {
		t.Fatalf("dial again with the addresses of a connection in TIME_WAIT: %v", err)
	}
	kept = append(kept, again)
}

func TestNewestListenerTakesAll(t *testing.T) {
	home := openHome(t)
	n := newNamespace(t, home)
	listen := func() *net.TCPListener {
		ln, err := n.ListenTCP(Listener{Shared: true}, 15001)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dial := func(times int) {
		t.Helper()
		for range times {
			c, err := n.DialTCP(ctx, Dialer{}, netip.MustParseAddrPort("127.0.0.1:15001"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
	}
	accepted := func(ln *net.TCPListener, want int) {
		t.Helper()
		for range want {
			ln.SetDeadline(time.Now().Add(30 * time.Second))
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	}
	old := listen()
	dial(20)
	accepted(old, 20)
	newer := listen()
	dial(20)
	accepted(newer, 20)
	old.Close()
	dial(20)
	accepted(newer, 20)
	newest := listen()
	dial(20)
	accepted(newest, 20)
	// The newest goes away: the one before it serves again.
	newest.Close()
	dial(20)
	accepted(newer, 20)
}

// TestKeepAliveIsOfTCP: one configuration makes listeners of both kinds; a datagram socket has no keep-alive to set.
func TestKeepAliveIsOfTCP(t *testing.T) {
	ns := newNamespace(t, openHome(t))
	how := Listener{KeepAlive: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Second, Count: 3}}
	at := netip.MustParseAddrPort("127.0.0.1:15053")
	udp, err := ns.ListenUDP(how, at)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := ns.ListenTCPAt(how, at)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	idle := 0
	if err := control(raw, func(fd int) error {
		var err error
		idle, err = unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE)
		return err
	}); err != nil || idle != 60 {
		t.Errorf("keep-alive of the TCP listener begins after %d s, %v; want 60", idle, err)
	}
}

func TestListening(t *testing.T) {
	home := openHome(t)
	n := newNamespace(t, home)
	want := func(want bool) {
		t.Helper()
		if got, err := n.Listening(15008); err != nil || got != want {
			t.Errorf("listening: %v, %v; want %v", got, err, want)
		}
	}
	want(false)
	ln, err := n.ListenTCP(Listener{Shared: true}, 15008)
	if err != nil {
		t.Fatal(err)
	}
	want(true)
	// An accepted connection, or what it leaves behind, is no listener.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := n.DialTCP(ctx, Dialer{}, netip.MustParseAddrPort("127.0.0.1:15008"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	want(false)
	a.Close()
	want(false)
}

// TestConntrack opens connections in a namespace that tracks them, and looks for them while they live and after.
func TestConntrack(t *testing.T) {
	home := openHome(t)
	n := newNamespace(t, home)
	if err := n.Do(trackConnections); err != nil {
		t.Skipf("skipped: cannot turn connection tracking on: %v", err)
	}
	ct, err := n.OpenConntrack()
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(loopback), 8080)
		live := func(src netip.AddrPort, want bool, when string) {
			t.Helper()
			got, err := ct.Live(src, dst)
			if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("%s: live = %v, want %v", when, got, want)
			}
		}
		live(netip.AddrPortFrom(dst.Addr(), 20000), false, "a connection that there never was")
		ln, err := n.ListenTCP(Listener{}, 8080)
		if err != nil {
			t.Fatal(err)
		}
		c, err := n.DialTCP(ctx, Dialer{}, dst)
		if err != nil {
			t.Fatal(err)
		}
		a, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		src := AddrPort(c.LocalAddr())
		live(src, true, "an open connection")
		c.CloseWrite()
		live(src, true, "a half-closed connection")
		a.Close()
		c.Read(make([]byte, 1))
		c.Close()
		live(src, false, "a closed connection")
		ln.Close()
	}
	ct.Close()
	if _, err := ct.Live(netip.AddrPort{}, netip.MustParseAddrPort("127.0.0.1:80")); err == nil {
		t.Error("a look-up after Close gave no error")
	}
}

// trackConnections turns connection tracking on in the thread's namespace, by rules that need it.
func trackConnections() error {
	for _, program := range []string{"iptables", "ip6tables"} {
		out, err := exec.Command(program, "-w", "-A", "OUTPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, out)
		}
	}
	return nil
}

func TestConcurrentVisits(t *testing.T) {
	home := openHome(t)
	a, b := newNamespace(t, home), newNamespace(t, home)
	before := inode(t)
	var wg sync.WaitGroup
	for _, n := range []*Namespace{a, b} {
		for range 8 {
			wg.Go(func() {
				for range 50 {
					err := n.Do(func() error {
						if got := inode(t); got != n.ID().Ino {
							t.Errorf("in namespace %d, want %d", got, n.ID().Ino)
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
					if got := inode(t); got != before {
						t.Errorf("back in namespace %d, want %d", got, before)
					}
				}
			})
		}
	}
	wg.Wait()
	b.Close()
	if err := b.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("enter a closed namespace: %v, want os.ErrClosed", err)
	}
}

func TestNamespaceRefusesOtherDescriptors(t *testing.T) {
	home := openHome(t)
	for _, path := range []string{"/dev/null", "/proc/self/ns/uts"} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := home.Namespace(fd); !errors.Is(err, ErrNotNetNS) {
			t.Errorf("%s: %v, want ErrNotNetNS", path, err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			t.Errorf("%s: descriptor is still open", path)
		}
	}
}

func TestAliveAndAddrs(t *testing.T) {
	home := openHome(t)
	n := newNamespace(t, home)
	if alive, err := n.Alive(); err != nil || alive {
		t.Errorf("namespace with loopback alone: alive = %v, %v", alive, err)
	}
	addrs, err := n.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	if diff := cmp.Diff(want, addrs, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	ports, err := n.LocalPorts()
	if err != nil {
		t.Fatal(err)
	}
	if ports.Ephemeral.First == 0 || ports.Ephemeral.Last < ports.Ephemeral.First {
		t.Errorf("local ports %+v", ports)
	}
}

func TestParseLocalPorts(t *testing.T) {
	for _, tc := range []struct {
		ephemeral, reserved string
		want                LocalPorts
		bad                 bool
	}{
		{ephemeral: "32768\t60999\n", reserved: "\n", want: LocalPorts{Ephemeral: PortRange{32768, 60999}}},
		{ephemeral: "1024 65535", reserved: "2000-3000,8080\n",
			want: LocalPorts{Ephemeral: PortRange{1024, 65535}, Reserved: []PortRange{{2000, 3000}, {8080, 8080}}}},
		{ephemeral: "1024", bad: true},
		{ephemeral: "2 1", bad: true},
		{ephemeral: "1 70000", bad: true},
		{ephemeral: "1 2", reserved: "x", bad: true},
	} {
		got, err := parseLocalPorts(tc.ephemeral, tc.reserved)
		if (err != nil) != tc.bad {
			t.Errorf("%q, %q: error %v, want one: %v", tc.ephemeral, tc.reserved, err, tc.bad)
			continue
		}
		if err == nil {
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%q, %q (-want +got):\n%s", tc.ephemeral, tc.reserved, diff)
			}
		}
	}
}
