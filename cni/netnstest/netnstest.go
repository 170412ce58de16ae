// Package netnstest gives tests of this room real network namespaces: made, linked, entered and listened to. Only tests
// import it. All names it makes begin with "ambit-c-", and all of it goes with the test.
package netnstest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dir is where `ip netns` finds namespaces, too.
const dir = "/run/netns"

// Need ends the test unless it can make network namespaces and finds the commands.
func Need(t testing.TB, commands ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and so needs root: run the test as root")
	}
	packages := map[string]string{
		"iptables-nft": "iptables", "iptables-legacy": "iptables", "ip6tables-nft": "iptables", "ip6tables-legacy": "iptables",
		"ipset": "ipset", "conntrack": "conntrack", "nft": "nftables",
	}
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			t.Fatalf("the test needs the command %s: apt-get install %s", c, packages[c])
		}
	}
}

// New makes a network namespace whose lo is up. Path names it.
func New(t testing.TB) ns.NetNS {
	t.Helper()
	Need(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var id [6]byte
	if _, err := rand.Read(id[:]); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ambit-c-"+hex.EncodeToString(id[:]))
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	})
	made := make(chan error)
	go func() { // the locked thread ends with this goroutine, so nothing else ever runs in the namespace
		runtime.LockOSThread()
		made <- bindNew(path)
	}()
	if err := <-made; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	netns, err := ns.GetNS(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Close() })
	In(t, netns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return netns
}

func bindNew(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
}

// In runs f inside the namespace, and ends the test if it fails.
func In(t testing.TB, netns ns.NetNS, f func() error) {
	t.Helper()
	if err := netns.Do(func(ns.NetNS) error { return f() }); err != nil {
		t.Fatal(err)
	}
}

// Run runs a command inside the namespace and returns its standard output.
func Run(t testing.TB, netns ns.NetNS, command string) string {
	t.Helper()
	var out []byte
	In(t, netns, func() error {
		var stderr strings.Builder
		words := strings.Fields(command)
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Stderr = &stderr
		var err error
		if out, err = cmd.Output(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, stderr.String())
		}
		return nil
	})
	return string(out)
}

// Link joins two namespaces with a veth pair, "eth0" on the side of a and the given name on the side of b, with the
// addresses (prefixes), both up. Duplicate address detection is off, so that the addresses are usable at once.
func Link(t testing.TB, a, b ns.NetNS, nameB string, addrsA, addrsB []string) {
	t.Helper()
	In(t, a, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b.Fd()))}
		return netlink.LinkAdd(veth)
	})
	up := func(netns ns.NetNS, name string, addrs []string) {
		In(t, netns, func() error {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0o644)
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			for _, addr := range addrs {
				parsed, err := netlink.ParseAddr(addr)
				if err != nil {
					return err
				}
				if parsed.IP.To4() == nil {
					parsed.Flags = unix.IFA_F_NODAD
				}
				if err := netlink.AddrAdd(link, parsed); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		})
	}
	up(a, "eth0", addrsA)
	up(b, nameB, addrsB)
}

// DefaultRoute sends everything that has no other route to the gateway.
func DefaultRoute(t testing.TB, netns ns.NetNS, gateway string) {
	t.Helper()
	In(t, netns, func() error {
		return netlink.RouteAdd(&netlink.Route{Gw: net.IP(netip.MustParseAddr(gateway).AsSlice())})
	})
}

// Listen opens a TCP listener inside the namespace; it is closed with the test.
func Listen(t testing.TB, netns ns.NetNS, addr string) net.Listener {
	t.Helper()
	var ln net.Listener
	In(t, netns, func() (err error) {
		config := net.ListenConfig{KeepAlive: -1}
		ln, err = config.Listen(context.Background(), "tcp", addr)
		return err
	})
	t.Cleanup(func() { ln.Close() })
	return ln
}

// Dial opens a TCP connection from inside the namespace. A test closes it itself if it has to be closed early.
func Dial(t testing.TB, netns ns.NetNS, addr string) *net.TCPConn {
	t.Helper()
	conn, err := TryDial(netns, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TryDial is Dial with an error to look at.
func TryDial(netns ns.NetNS, addr string) (*net.TCPConn, error) {
	var conn net.Conn
	err := netns.Do(func(ns.NetNS) (err error) {
		// An address, not a name: the dial stays on this thread, and so in the namespace. No keepalive: idle means idle.
		dialer := net.Dialer{Timeout: 20 * time.Second, KeepAlive: -1}
		conn, err = dialer.Dial("tcp", addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// Eventually waits until the condition holds, and ends the test if it does not within the limit.
func Eventually(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
}

// Capture is what passed an interface since Sniff began.
type Capture struct {
	netns ns.NetNS
	index int // of the interface

	mu      sync.Mutex
	packets [][]byte // guarded by mu; from the network header on
	marks   int      // guarded by mu; counts Settle
}

// Sniff records every packet that passes the interface, in both directions, until the test ends.
func Sniff(t testing.TB, netns ns.NetNS, link string) *Capture {
	t.Helper()
	fd := -1
	c := &Capture{netns: netns}
	In(t, netns, func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		c.index = l.Attrs().Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: c.index})
	})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		defer unix.Close(fd)
		buf := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				c.mu.Lock()
				c.packets = append(c.packets, append([]byte(nil), buf[:n]...))
				c.mu.Unlock()
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return c
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Settle waits until everything that has passed the interface is in the capture: it sends a frame of its own behind it.
func (c *Capture) Settle(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	c.marks++
	mark := fmt.Sprintf("ambit-c-settle-%d", c.marks)
	c.mu.Unlock()
	In(t, c.netns, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// 0x88b5 is IEEE's Ethertype for local experiments: nobody listens.
		return unix.Sendto(fd, []byte(mark), 0, &unix.SockaddrLinklayer{Protocol: htons(0x88b5), Ifindex: c.index, Halen: 6})
	})
	Eventually(t, 30*time.Second, "the capture has everything", func() bool { return c.has(mark) })
}

// Contains says whether the bytes were in a packet so far, everything that has passed the interface included.
func (c *Capture) Contains(t testing.TB, payload string) bool {
	t.Helper()
	c.Settle(t)
	return c.has(payload)
}

func (c *Capture) has(payload string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.packets {
		if strings.Contains(string(p), payload) {
			return true
		}
	}
	return false
}
