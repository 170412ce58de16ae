package probes

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/cni/netnstest"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/cni/xtables"
)

func eachKind(t *testing.T, test func(t *testing.T, b *xtables.Backend)) {
	t.Helper()
	netnstest.Need(t, "iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy", "ipset")
	backends, err := xtables.Find()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backends {
		t.Run(b.Kind, func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

func addrs(t *testing.T, list ...string) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// TestHostProbesReachCapturedPods: a process of the host reaches the application in plain, in both families; one of
// another pod, which the host forwards, is redirected like any other.
func TestHostProbesReachCapturedPods(t *testing.T) {
	eachKind(t, func(t *testing.T, b *xtables.Backend) {
		host, pod, other := netnstest.New(t), netnstest.New(t), netnstest.New(t)
		netnstest.Link(t, pod, host, "pod0", []string{"10.78.0.2/24", "fd78::2/64"}, []string{"10.78.0.1/24", "fd78::1/64"})
		netnstest.Link(t, other, host, "pod1", []string{"10.79.0.2/24", "fd79::2/64"}, []string{"10.79.0.1/24", "fd79::1/64"})
		for netns, gateways := range map[ns.NetNS][]string{pod: {"10.78.0.1", "fd78::1"}, other: {"10.79.0.1", "fd79::1"}} {
			for _, g := range gateways {
				netnstest.DefaultRoute(t, netns, g)
			}
		}
		netnstest.In(t, host, func() error {
			for _, f := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
				if err := os.WriteFile(f, []byte("1"), 0o644); err != nil {
					return err
				}
			}
			return nil
		})
		k, err := rules.NewKernel(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Apply(t.Context(), pod, rules.For(rules.Config{IPv6: true})); err != nil {
			t.Fatal(err)
		}
		h := New(Config{NetNS: host, Backend: b})
		if err := h.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Put("uid-1", addrs(t, "10.78.0.2", "fd78::2")); err != nil {
			t.Fatal(err)
		}
		app := netnstest.Listen(t, pod, "[::]:8080")
		for _, addr := range []string{"10.78.0.2:8080", "[fd78::2]:8080"} {
			netnstest.Dial(t, host, addr)
			conn, err := app.Accept()
			if err != nil {
				t.Fatal(err)
			}
			from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			if from != setOf(from).source {
				t.Errorf("%s sees %s", addr, from)
			}
			conn.Close()
			if conn, err := netnstest.TryDial(other, addr); err == nil {
				conn.Close()
				t.Errorf("another pod reached the application in plain at %s", addr)
			}
		}
		if err := h.Delete("uid-1"); err != nil {
			t.Fatal(err)
		}
		if conn, err := netnstest.TryDial(host, "10.78.0.2:8080"); err == nil {
			conn.Close()
			t.Error("still exempt")
		}
	})
}

func TestEnsureRepairs(t *testing.T) {
	eachKind(t, func(t *testing.T, b *xtables.Backend) {
		host := netnstest.New(t)
		h := New(Config{NetNS: host, Backend: b})
		post := func() string { return netnstest.Run(t, host, "iptables-"+b.Kind+" -t nat -S") }
		if err := h.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := post()
		if err := h.Put("uid-1", addrs(t, "10.78.0.2")); err != nil {
			t.Fatal(err)
		}
		for _, damage := range []string{
			"-F ISTIO_POSTRT", "-D POSTROUTING -j ISTIO_POSTRT", "-I ISTIO_POSTRT 1 -p tcp -j ACCEPT",
		} {
			netnstest.Run(t, host, "iptables-"+b.Kind+" -t nat "+damage)
			if err := h.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, post()); diff != "" {
				t.Errorf("after %s:\n%s", damage, diff)
			}
		}
		// Somebody else's rule came first: ours moves before it, and theirs stays.
		netnstest.Run(t, host, "iptables-"+b.Kind+" -t nat -I POSTROUTING 1 -p udp -j ACCEPT")
		if err := h.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := netnstest.Run(t, host, "iptables-"+b.Kind+" -t nat -S POSTROUTING"); got != "-P POSTROUTING ACCEPT\n-A POSTROUTING -j ISTIO_POSTRT\n-A POSTROUTING -p udp -j ACCEPT\n" {
			t.Errorf("not first, or not once:\n%s", got)
		}
		entries, err := h.Entries()
		if err != nil || len(entries) != 1 {
			t.Errorf("entries did not survive: %v, %v", entries, err)
		}
		for range 2 {
			if err := h.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if out := post() + netnstest.Run(t, host, "ipset list -name"); strings.Contains(strings.ToLower(out), "istio") {
			t.Errorf("left:\n%s", out)
		}
		if out := post(); !strings.Contains(out, "-p udp -j ACCEPT") {
			t.Errorf("took another's rule:\n%s", out)
		}
	})
}

func TestAddressPassesToItsNextPod(t *testing.T) {
	eachKind(t, func(t *testing.T, b *xtables.Backend) {
		h := New(Config{NetNS: netnstest.New(t), Backend: b})
		if entries, err := h.Entries(); err != nil || len(entries) != 0 {
			t.Errorf("before the first set: %v, %v", entries, err)
		}
		if err := h.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, put := range []struct{ uid, addr string }{{"old", "10.78.0.2"}, {"new", "10.78.0.2"}, {"old", "fd78::2"}} {
			if err := h.Put(put.uid, addrs(t, put.addr)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second finds nothing
			if err := h.Delete("old"); err != nil {
				t.Fatal(err)
			}
		}
		got, err := h.Entries()
		if err != nil || len(got) != 1 || got[netip.MustParseAddr("10.78.0.2")] != "new" {
			t.Errorf("entries %v, %v", got, err)
		}
	})
}

// TestHostLockIsWaitedFor: with the legacy kind, changes of the host's tables wait for other programs of the host.
func TestHostLockIsWaitedFor(t *testing.T) {
	eachKind(t, func(t *testing.T, b *xtables.Backend) {
		if b.Kind != "legacy" {
			return // the kernel orders changes of the nft kind
		}
		path := filepath.Join(t.TempDir(), "xtables.lock")
		held, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		h := New(Config{NetNS: netnstest.New(t), Backend: b, LockFile: path})
		ensured := make(chan error, 1)
		go func() { ensured <- h.Ensure(t.Context()) }()
		select {
		case err := <-ensured:
			t.Fatalf("did not wait: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if err := unix.Flock(int(held.Fd()), unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		if err := <-ensured; err != nil {
			t.Error(err)
		}
	})
}
