package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// Deadlines. What should come about at once gets patience, so that a busy machine does not fail a test.
const (
	patience  = time.Minute
	ioTimeout = 30 * time.Second
)

// binaries are the ztunnels under test: proxies of one world take them in turn.
var binaries []string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == trafficVerb {
		os.Exit(traffic(os.Args[2:]))
	}
	os.Exit(run(m))
}

// raceDetector tells whether these tests were built with -race.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// run builds the binary, with the race detector if these tests have it, unless AMBIT_ZTUNNEL names one, or several with commas
// between: any that speak the same wires.
func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // each test says why it is skipped
	}
	dir, err := os.MkdirTemp("", "ambit-t-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if given := os.Getenv("AMBIT_ZTUNNEL"); given != "" {
		binaries = strings.Split(given, ",")
	} else {
		binary := filepath.Join(dir, "ztunnel")
		binaries = []string{binary}
		args := []string{"build", "-o", binary}
		if raceDetector() {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "github.com/ambit-mesh/ambit/ztunnel/cmd/ztunnel")...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build ztunnel:", err)
			return 1
		}
	}
	if err := lab.Clear(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// world is a lab and the test that uses it.
type world struct {
	*lab.Lab
	t       *testing.T
	ctx     context.Context
	proxies []*lab.Proxy
	markers *atomic.Int64
	family  lab.Family
}

// newWorld makes a lab, dual stack, that goes with the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOf(t, lab.Dual)
}

// newWorldOf makes a lab of one address family, or of both.
func newWorldOf(t *testing.T, family lab.Family) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: network namespaces need root")
	}
	limit, maxLog := 10*time.Minute, int64(0)
	if soak() {
		limit, maxLog = 3*time.Hour, 1<<30 // a line for each connection of a storm, for minutes
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	w := &world{t: t, ctx: ctx, markers: new(atomic.Int64), family: family}
	var err error
	w.Lab, err = lab.New(ctx, lab.Config{Family: family, Dir: t.TempDir(), MaxLog: maxLog, Logger: slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.endProxies()
		w.checkLogs()
		if t.Failed() {
			for _, p := range w.proxies {
				t.Logf("log of the proxy on %s (pid %d), errors and end:\n%s...\n%s", p.Node.Name, p.PID(), errorLines(p), p.LogTail())
			}
		}
		cancel()
		if err := w.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return w
}

// ended is the last line of a proxy's log.
var ended = regexp.MustCompile(`msg="?ended"? .*goroutines_left=(-?\d+) descriptors_left=(-?\d+)`)

// endProxies tells all proxies to end, which they must do with success and with no goroutine or descriptor left. Those that
// still carry something for a peer that is gone are not waited for: they may for as long as their grace period is.
func (w *world) endProxies() {
	if w.t.Failed() {
		return // what went wrong may keep them
	}
	const (
		limit = 8 * time.Second
		slack = 3 // descriptors of the runtime itself
	)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var running []*lab.Proxy
	for _, p := range w.proxies {
		select {
		case <-p.Exited():
		default:
			running = append(running, p)
			if err := p.Signal(syscall.SIGTERM); err != nil {
				w.t.Error(err)
			}
		}
	}
	for _, p := range running {
		err := p.Wait(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			w.t.Logf("proxy on %s still has something to carry", p.Node.Name)
			continue
		}
		if err != nil {
			w.t.Errorf("proxy on %s was told to end: %v", p.Node.Name, err)
			continue
		}
		m := ended.FindStringSubmatch(p.LogTail())
		if m == nil {
			continue // another make's, or it logs errors only
		}
		routines, _ := strconv.Atoi(m[1])
		files, _ := strconv.Atoi(m[2])
		if routines > 0 || files > slack {
			w.t.Errorf("proxy on %s ended with %d goroutines and %d descriptors left", p.Node.Name, routines, files)
		}
	}
}

// checkLogs fails the test if a proxy has logged without end, has panicked, or raced (in a binary that was built to tell: tests
// that are run with -race build it so).
func (w *world) checkLogs() {
	for _, p := range w.proxies {
		select {
		case <-p.Exited():
			if err := p.Wait(context.Background()); errors.Is(err, lab.ErrLogTooLong) {
				w.t.Error(err)
			}
		default:
		}
		body, err := os.ReadFile(p.Log)
		if err != nil {
			w.t.Error(err)
		}
		for _, bad := range []string{"panic: ", "DATA RACE", "fatal error: "} {
			if i := strings.Index(string(body), bad); i >= 0 {
				w.t.Errorf("proxy on %s: %.4000s", p.Node.Name, body[i:])
			}
		}
	}
}

// errorLines returns the first lines of a proxy's log that tell of errors.
func errorLines(p *lab.Proxy) string {
	const most = 20
	body, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	n := 0
	for line := range strings.Lines(string(body)) {
		if n < most && (strings.Contains(line, "error=") || strings.Contains(line, " error ")) {
			b.WriteString(line)
			n++
		}
	}
	return b.String()
}

// in is the world as a subtest uses it.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	return &sub
}

type logWriter struct{ t *testing.T }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// node makes a node with a proxy.
func (w *world) node(name string, env ...string) *lab.Node {
	w.t.Helper()
	n, err := w.AddNode(name)
	w.must(err)
	w.start(n, env...)
	return n
}

// start starts a proxy on a node, and waits until it is ready.
func (w *world) start(n *lab.Node, env ...string) *lab.Proxy {
	w.t.Helper()
	p := w.launch(n, env...)
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	w.must(p.WaitReady(ctx))
	return p
}

// launch starts a proxy on a node.
func (w *world) launch(n *lab.Node, env ...string) *lab.Proxy {
	w.t.Helper()
	p, err := n.StartProxy(binaries[len(w.proxies)%len(binaries)], env...)
	w.must(err)
	w.proxies = append(w.proxies, p)
	return p
}

// pod makes a pod that discovery knows, not captured.
func (w *world) pod(n *lab.Node, name string) *lab.Pod {
	w.t.Helper()
	p, err := n.AddPod(name)
	w.must(err)
	w.Control.SetAddresses(p.Address(false))
	return p
}

// captured makes a captured pod.
func (w *world) captured(n *lab.Node, name string) *lab.Pod {
	w.t.Helper()
	p, err := n.AddPod(name)
	w.must(err)
	w.capture(p)
	return p
}

// capture does what the agent does for a pod that starts.
func (w *world) capture(p *lab.Pod) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	w.must(w.Kernel.Apply(ctx, p.Handle(), rules.For(rules.Config{IPv6: true})))
	w.Control.SetAddresses(p.Address(true))
	w.must(p.Offer(ctx))
}

// service is a Service of the mesh.
type service struct {
	host   string
	v4, v6 netip.Addr // the zero Addr where the world has no such family
	ports  []*workload.Port
}

// at is the service's address and port for one family.
func (s *service) at(v6 bool, port int) string {
	if v6 {
		return netip.AddrPortFrom(s.v6, uint16(port)).String()
	}
	return netip.AddrPortFrom(s.v4, uint16(port)).String()
}

func (s *service) resource() *workload.Address {
	var addrs []*workload.NetworkAddress
	for _, a := range []netip.Addr{s.v4, s.v6} {
		if a.IsValid() {
			addrs = append(addrs, &workload.NetworkAddress{Address: a.AsSlice()})
		}
	}
	return &workload.Address{Type: &workload.Address_Service{Service: &workload.Service{
		Name: strings.SplitN(s.host, ".", 2)[0], Namespace: "default", Hostname: s.host, Addresses: addrs, Ports: s.ports,
	}}}
}

// serve makes a service before pods, with port 80 leading to 8080.
func (w *world) serve(name string, n byte, captured bool, pods ...*lab.Pod) *service {
	w.t.Helper()
	s := &service{
		host:  name + ".default.svc.cluster.local",
		ports: []*workload.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	if w.family != lab.IPv6 {
		s.v4 = netip.AddrFrom4([4]byte{10, 96, 0, n})
	}
	if w.family != lab.IPv4 {
		s.v6 = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x96, 15: n})
	}
	all := []*workload.Address{s.resource()}
	for _, p := range pods {
		all = append(all, s.endpoint(p, captured))
	}
	w.Control.SetAddresses(all...)
	return s
}

// endpoint is the pod's workload as a member of the service.
func (s *service) endpoint(p *lab.Pod, captured bool) *workload.Address {
	wl := p.Workload(captured)
	wl.Services = map[string]*workload.PortList{"default/" + s.host: {Ports: s.ports}}
	return &workload.Address{Type: &workload.Address_Workload{Workload: wl}}
}

// settle waits until every running proxy knows all that the control plane was given so far: it gives a marker last.
func (w *world) settle() {
	w.t.Helper()
	uid := fmt.Sprintf("Kubernetes//Pod/default/marker-%d", w.markers.Add(1))
	w.Control.SetAddresses(&workload.Address{Type: &workload.Address_Workload{Workload: &workload.Workload{
		Uid: uid, Name: "marker", Namespace: "default", Node: "nowhere",
	}}})
	for _, p := range w.proxies {
		select {
		case <-p.Exited():
			continue
		default:
		}
		w.eventually("proxy on "+p.Node.Name+" knows the newest state", func() error {
			code, body, err := p.Get(w.ctx, 15000, "/config_dump")
			if err != nil {
				return err
			}
			if code != http.StatusOK || !strings.Contains(body, uid) {
				return fmt.Errorf("status %d, no %s in the dump", code, uid)
			}
			return nil
		})
	}
}

// eventually waits until cond returns nil.
func (w *world) eventually(what string, cond func() error) {
	w.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			w.t.Fatalf("not within %v: %s: %v", patience, what, err)
		case <-tick.C:
		}
	}
}

// listen serves TCP in a pod until the test ends.
func (w *world) listen(p *lab.Pod, addr string, handle func(*net.TCPConn)) {
	w.t.Helper()
	ln, err := p.Listen(addr)
	w.must(err)
	w.t.Cleanup(func() { ln.Close() })
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(c.(*net.TCPConn)) // ends with the connection
		}
	}()
}

// echo sends back what comes, after a line with the client's address.
func echo(c *net.TCPConn) {
	defer c.Close()
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	addr := netip.MustParseAddr(host).Unmap()
	if _, err := fmt.Fprintf(c, "%s\n", addr); err != nil {
		return
	}
	io.Copy(c, c)
}

// call opens a connection to an echo, sends a text, and returns the address that the server saw.
func call(from *lab.Pod, to, text string) (seen string, err error) {
	c, err := from.Dial(to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return converse(c, text)
}

// converse is call on an open connection, which it half-closes.
func converse(c *net.TCPConn, text string) (seen string, err error) {
	c.SetDeadline(time.Now().Add(ioTimeout))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	seen, rest, ok := strings.Cut(string(answer), "\n")
	if !ok || rest != text {
		return seen, fmt.Errorf("echo of %q is %q", text, answer)
	}
	return seen, nil
}

// expect fails the test unless a call works and the server sees want.
func (w *world) expect(from *lab.Pod, to string, want netip.Addr) {
	w.t.Helper()
	seen, err := call(from, to, "hello")
	if err != nil {
		w.t.Errorf("%s to %s: %v", from.Name, to, err)
		return
	}
	if seen != want.String() {
		w.t.Errorf("%s to %s: the server sees %s, want the client's address %s", from.Name, to, seen, want)
	}
}

// refused fails the test unless a call does not work.
func (w *world) refused(from *lab.Pod, to string) {
	w.t.Helper()
	if seen, err := call(from, to, "hello"); err == nil {
		w.t.Errorf("%s to %s works (the server sees %s), want it refused", from.Name, to, seen)
	}
}

// logged waits for a line of a proxy's log that holds all of the texts.
func (w *world) logged(p *lab.Proxy, texts ...string) string {
	w.t.Helper()
	var found string
	w.eventually(fmt.Sprintf("a log line of the proxy on %s with %q", p.Node.Name, texts), func() error {
		body, err := os.ReadFile(p.Log)
		if err != nil {
			return err
		}
	lines:
		for line := range strings.SplitSeq(string(body), "\n") {
			for _, t := range texts {
				if !strings.Contains(line, t) {
					continue lines
				}
			}
			found = line
			return nil
		}
		return errors.New("no such line")
	})
	return found
}

// dump decodes a proxy's /config_dump.
func (w *world) dump(p *lab.Proxy) map[string]any {
	w.t.Helper()
	code, body, err := p.Get(w.ctx, 15000, "/config_dump")
	w.must(err)
	if code != http.StatusOK {
		w.t.Fatalf("config_dump: status %d: %s", code, body)
	}
	var d map[string]any
	w.must(json.Unmarshal([]byte(body), &d))
	return d
}

// addr is one of the pod's addresses and a port.
func addr(p *lab.Pod, v6 bool, port int) string {
	if v6 {
		return netip.AddrPortFrom(p.IPv6, uint16(port)).String()
	}
	return netip.AddrPortFrom(p.IPv4, uint16(port)).String()
}

// ip is the pod's address of one family.
func ip(p *lab.Pod, v6 bool) netip.Addr {
	if v6 {
		return p.IPv6
	}
	return p.IPv4
}

// families runs a test for IPv4 and IPv6.
func families(t *testing.T, f func(t *testing.T, v6 bool)) {
	t.Run("IPv4", func(t *testing.T) { f(t, false) })
	t.Run("IPv6", func(t *testing.T) { f(t, true) })
}

// families runs a test for each family of the world.
func (w *world) families(f func(t *testing.T, v6 bool)) {
	switch w.family {
	case lab.IPv4:
		f(w.t, false)
	case lab.IPv6:
		f(w.t, true)
	default:
		families(w.t, f)
	}
}
