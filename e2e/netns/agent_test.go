package netns

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// wildAgent speaks ZDS as the test tells it to, well or badly.
type wildAgent struct {
	w  *world
	ln *net.UnixListener
}

func (w *world) wildAgent(socket string) *wildAgent {
	w.t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	w.must(err)
	w.t.Cleanup(func() { ln.Close() })
	return &wildAgent{w: w, ln: ln}
}

// accept waits for the proxy and reads its hello.
func (a *wildAgent) accept() *wildConn {
	a.w.t.Helper()
	a.w.must(a.ln.SetDeadline(time.Now().Add(patience)))
	c, err := a.ln.AcceptUnix()
	a.w.must(err)
	a.w.t.Cleanup(func() { c.Close() })
	conn := &wildConn{w: a.w, UnixConn: c}
	hello := &zds.ZdsHello{}
	a.w.must(proto.Unmarshal(conn.read(), hello))
	if hello.GetVersion() != zds.Version_V1 {
		a.w.t.Fatalf("hello: %v", hello)
	}
	return conn
}

type wildConn struct {
	w *world
	*net.UnixConn
}

func (c *wildConn) read() []byte {
	c.w.t.Helper()
	c.w.must(c.SetReadDeadline(time.Now().Add(patience)))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	c.w.must(err)
	return b[:n]
}

// must sends a request and wants success.
func (c *wildConn) must(r *zds.WorkloadRequest, fds ...int) {
	c.w.t.Helper()
	b, err := proto.Marshal(r)
	c.w.must(err)
	_, _, err = c.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	c.w.must(err)
	answer := &zds.WorkloadResponse{}
	c.w.must(proto.Unmarshal(c.read(), answer))
	if text := answer.GetAck().GetError(); text != "" {
		c.w.t.Fatalf("%v: %s", r, text)
	}
}

// snapshot names pods and ends the snapshot.
func (c *wildConn) snapshot(pods ...*lab.Pod) {
	c.w.t.Helper()
	for _, p := range pods {
		f, err := os.Open(p.Path)
		c.w.must(err)
		c.must(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: p.UID,
			WorkloadInfo: &zds.WorkloadInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}}}}, int(f.Fd()))
		f.Close()
	}
	c.must(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}})
}

// TestAgentBreaksProtocol has the agent say nonsense: the proxy goes on serving, and speaks to the agent again.
func TestAgentBreaksProtocol(t *testing.T) {
	w := newWorld(t)
	n, err := w.AddNode("node1")
	w.must(err)
	socket := filepath.Join(t.TempDir(), "zds.sock")
	agent := w.wildAgent(socket)
	p := w.launch(n, "INPOD_UDS="+socket)
	client, server := w.pod(n, "client"), w.pod(n, "server")
	w.listen(server, ":8080", echo)
	for _, pod := range []*lab.Pod{client, server} {
		w.must(w.Kernel.Apply(w.ctx, pod.Handle(), rules.For(rules.Config{IPv6: true})))
		w.Control.SetAddresses(pod.Address(true))
	}
	c := agent.accept()
	c.snapshot(client, server)
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	w.must(p.WaitReady(ctx))
	w.settle()
	kept := w.hold(client, addr(server, false, 8080))
	add, err := proto.Marshal(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{Uid: "x",
		WorkloadInfo: &zds.WorkloadInfo{Name: "x", Namespace: "x", ServiceAccount: "x"}}}})
	w.must(err)
	for _, breach := range []struct {
		name   string
		packet []byte
	}{
		{"garbage", []byte("\xff\xff\xffgarbage")},
		{"add without descriptor", add},
		{"very long", make([]byte, 64<<10)},
	} {
		t.Run(breach.name, func(t *testing.T) {
			w := w.in(t)
			_, err := c.Write(breach.packet)
			w.must(err)
			c = agent.accept()
			// What is served goes on even before the agent has named it again.
			if err := kept.works(); err != nil {
				t.Errorf("connection of the time before: %v", err)
			}
			w.expect(client, addr(server, false, 8080), client.IPv4)
			c.snapshot(client, server)
			w.expect(client, addr(server, false, 8080), client.IPv4)
		})
	}
	t.Run("the agent goes away and comes back", func(t *testing.T) {
		w := w.in(t)
		agent.ln.Close() // removes the socket
		c.Close()
		w.expect(client, addr(server, false, 8080), client.IPv4)
		again := w.wildAgent(socket)
		again.accept().snapshot(client, server)
		w.expect(client, addr(server, false, 8080), client.IPv4)
		if err := kept.works(); err != nil {
			t.Errorf("connection of the time before: %v", err)
		}
	})
	if code, body, err := p.Get(w.ctx, 15021, "/healthz/ready"); err != nil || code != http.StatusOK {
		t.Errorf("readiness at the end: %d %s, %v", code, body, err)
	}
}

// TestControlPlaneAway cuts nodes off from the control plane: what works goes on.
func TestControlPlaneAway(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	kept := w.hold(client, addr(server, false, 8080))
	block := func(how string) {
		t.Helper()
		for _, n := range []*lab.Node{n1, n2} {
			w.must(n.Do(func() error {
				return iptables(how, "OUTPUT", "-p", "tcp", "--dport", "15012", "-j", "REJECT", "--reject-with", "tcp-reset")
			}))
		}
	}
	block("-I")
	w.Control.SetAddresses(w.pod(n1, "newcomer").Address(false)) // something to say, for the connection to end
	for _, p := range w.proxies {
		w.eventually("the proxy on "+p.Node.Name+" has no control plane", func() error {
			if connected := w.dump(p)["xds"].(map[string]any)["connected"]; connected != false {
				return fmt.Errorf("connected: %v", connected)
			}
			return nil
		})
	}
	w.expect(client, addr(server, false, 8080), client.IPv4)
	if err := kept.works(); err != nil {
		t.Errorf("connection of the time before: %v", err)
	}
	block("-D")
	w.settle() // they hear of what is new
	w.expect(client, addr(server, false, 8080), client.IPv4)
}

// iptables changes the rules of the thread's namespace.
func iptables(args ...string) error {
	out, err := exec.Command("iptables", append([]string{"-w"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// TestTakeoverWaitsForCertificates starts a second proxy that gets no certificates: it takes nothing over, and does not
// become ready, so that the first is not replaced.
func TestTakeoverWaitsForCertificates(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	host, err := w.AddHost(n2.Name)
	w.must(err)
	second := *n2
	second.Host = host
	nobody := "CA_ADDRESS=https://" + lab.Gateway4.String() + ":1"
	bad := w.launch(&second, nobody)
	w.logged(bad, "no certificate", "default/server")
	for range 20 {
		w.expect(client, addr(server, false, 8080), client.IPv4)
	}
	if code, _, err := bad.Get(w.ctx, 15021, "/healthz/ready"); err == nil && code == http.StatusOK {
		t.Error("the proxy without certificates says that it is ready")
	}
	bad.Kill()
	w.expect(client, addr(server, false, 8080), client.IPv4)
}

// TestFailedAddIsTriedAgain keeps a pod's port busy, so that its proxy cannot start, and then frees it.
func TestFailedAddIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	n := w.node("node1")
	client, server := w.captured(n, "client"), w.pod(n, "server")
	w.listen(server, ":8080", echo)
	busy, err := server.Listen(":15006")
	w.must(err)
	w.Control.SetAddresses(server.Address(true))
	w.must(w.Kernel.Apply(w.ctx, server.Handle(), rules.For(rules.Config{IPv6: true})))
	w.settle()
	if err := server.Offer(w.ctx); err == nil || !strings.Contains(err.Error(), "15006") || !strings.Contains(err.Error(), "default/server") {
		t.Errorf("offer of a pod whose port is taken: %v; want an error that names pod and port", err)
	}
	w.must(busy.Close())
	w.eventually("the pod is served", func() error {
		if open, err := listens(server, 15008); err != nil || !open {
			return fmt.Errorf("open %v, %v", open, err)
		}
		return nil
	})
	w.expect(client, addr(server, false, 8080), client.IPv4)
}

// cpuTime is what a process has used.
func cpuTime(w *world, p *lab.Proxy) time.Duration {
	w.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	w.must(err)
	// After the name, which is in brackets: utime and stime are fields 14 and 15 (proc(5)), in hundredths of a second.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var user, system int64
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// TestPodWithoutIPv6 captures a pod whose namespace has IPv6 turned off.
func TestPodWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	n := w.node("node1")
	client := w.captured(n, "client")
	server, err := n.AddPod("server")
	w.must(err)
	w.must(server.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0o644) }))
	w.must(w.Kernel.Apply(w.ctx, server.Handle(), rules.For(rules.Config{})))
	w.must(server.Offer(w.ctx))
	wl := server.Workload(true)
	wl.Addresses = wl.Addresses[:1]
	w.Control.SetAddresses(&workload.Address{Type: &workload.Address_Workload{Workload: wl}})
	w.listen(server, ":8080", echo)
	w.listen(client, ":8080", echo)
	w.settle()
	w.expect(client, addr(server, false, 8080), client.IPv4)
	w.expect(server, addr(client, false, 8080), server.IPv4)
}
