package scenarios

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// Deadlines. Each is several times what the step takes on two cores that are busy with other scenarios.
const (
	podsReady   = 2 * time.Minute
	captured    = 90 * time.Second
	installing  = 5 * time.Minute
	rolled      = 4 * time.Minute
	converged   = 2 * time.Minute  // policy or labels known everywhere
	afterwards  = 30 * time.Second // how long held connections live on past the event that the scenario is about
	wholeSuite  = 35 * time.Minute // what the test binary's own -timeout must leave
	oneScenario = 10 * time.Minute
)

// scenario is one story.
type scenario struct {
	// name is the test's; it begins with the number of the story.
	name string
	// manifest is applied first, namespaces are what it makes: their pods are awaited, and they are removed in the end.
	manifest   string
	namespaces []string
	// enrolled are those whose pods must be captured before the story begins.
	enrolled []string
	// empty says that the manifest has no pods.
	empty bool
	// family is the form; namespaces and enrolled are the names in the plain one.
	family Family
	tell   func(t *testing.T, w *world)
}

// in is the scenario's form of a family.
func (s scenario) in(f Family) scenario {
	s.name += "-" + strings.ToLower(string(f))
	s.family = f
	return s
}

// named is the scenario with the names that its namespaces have in its form.
func (s scenario) named() scenario {
	s.namespaces, s.enrolled = slices.Clone(s.namespaces), slices.Clone(s.enrolled)
	for _, names := range [][]string{s.namespaces, s.enrolled} {
		for i := range names {
			names[i] = s.family.Namespace(names[i])
		}
	}
	return s
}

// world is what a scenario works with.
type world struct {
	*harness.Cluster
	ctx context.Context
	// ns is the scenario's first namespace.
	ns string
	// family is the scenario's form.
	family Family
}

// open finds the cluster, or ends the test: skipped, with what is missing, or failed where a cluster is required.
func open(t *testing.T) *harness.Cluster {
	t.Helper()
	c, err := harness.Open(t.Context())
	if err == nil {
		_, err = c.Nodes()
	}
	switch {
	case err == nil:
	case os.Getenv(harness.EnvRequire) != "":
		t.Fatalf("%s is set: %v", harness.EnvRequire, err)
	case errors.Is(err, harness.ErrNoCluster):
		t.Skipf("skipped: %v", err)
	default:
		t.Fatal(err)
	}
	if deadline, ok := t.Deadline(); ok && time.Until(deadline) < wholeSuite && !filtered() {
		t.Fatalf("all scenarios together may take %s: run them with -timeout 45m", wholeSuite)
	}
	return c
}

// filtered tells whether -run names single scenarios.
func filtered() bool {
	return slices.ContainsFunc(os.Args, func(arg string) bool { return strings.Contains(arg, "test.run") && strings.Contains(arg, "/") })
}

// play sets a scenario's stage, tells it, and clears the stage. When it has failed, it first looks around.
func play(t *testing.T, c *harness.Cluster, s scenario) {
	// Not the test's own context, which ends before its cleanups begin.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), oneScenario)
	t.Cleanup(cancel)
	s = s.named()
	w := &world{Cluster: c, ctx: ctx, ns: s.namespaces[0], family: s.family}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx) // which may have run out
		if t.Failed() {
			var out bytes.Buffer
			c.Dump(ctx, &out, s.namespaces...)
			t.Logf("what the cluster looked like:\n%s", out.String())
		}
		for _, ns := range s.namespaces {
			if err := c.Kube.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}); err != nil {
				t.Errorf("clear the stage: %v", err)
			}
		}
	})
	for _, ns := range s.namespaces { // of a run that was cut off
		if pods, err := c.Pods(ctx, ns, ""); err != nil || len(pods) > 0 {
			_ = c.Kube.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}) // it may be away by now
			w.must(t, c.AwaitGone(ctx, ns, time.Minute))
		}
	}
	w.apply(t, s.manifest)
	if !s.empty {
		for _, ns := range s.namespaces {
			w.must(t, c.AwaitReady(ctx, ns, podsReady))
		}
	}
	for _, ns := range s.enrolled {
		w.must(t, c.AwaitCaptured(ctx, ns, captured))
	}
	for _, ns := range s.namespaces {
		w.settle(t, ns)
	}
	start := time.Now()
	s.tell(t, w)
	t.Logf("told in %s", time.Since(start).Round(100*time.Millisecond))
}

// settle waits until the services of a quartet, if the namespace has one, are known on every node and by the name server: Kubernetes
// itself takes a moment from the readiness of a pod to that, and the name server remembers those of an earlier run for a while.
func (w *world) settle(t *testing.T, ns string) {
	t.Helper()
	if _, err := w.Kube.CoreV1().Services(ns).Get(w.ctx, "server", metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return
	}
	var request traffic.DialRequest
	for _, service := range []string{"server", "server1", "server2"} {
		for _, host := range append(w.clusterIPs(t, ns, service), fmt.Sprintf("%s.%s.svc.cluster.local.", service, ns)) {
			request.Attempts = append(request.Attempts, traffic.Attempt{Target: target(host, traffic.PortEcho), Protocol: traffic.ProtocolEcho})
		}
	}
	until := harness.Until{What: "services of " + ns + " known on every node", Within: converged, InARow: 3}
	w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
		for _, client := range []string{"client1", "client2"} {
			outcomes, err := w.Dial(ctx, harness.Pod{Namespace: ns, Name: client}, request)
			if err != nil {
				return err
			}
			for _, outcome := range outcomes {
				if outcome.Kind != "" {
					return fmt.Errorf("%s -> %s: %s", client, outcome.Target, outcome.Error)
				}
			}
		}
		return nil
	}))
}

// must ends the scenario if a step could not be done.
func (w *world) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// apply applies one of the manifests.
func (w *world) apply(t *testing.T, name string) {
	t.Helper()
	raw, err := Manifest(name, w.family)
	w.must(t, err)
	w.must(t, w.Apply(w.ctx, raw))
}

// remove removes the objects of one of the manifests.
func (w *world) remove(t *testing.T, name string) {
	t.Helper()
	raw, err := Manifest(name, w.family)
	w.must(t, err)
	w.must(t, w.Delete(w.ctx, raw))
}

// ips returns a pod's addresses, those of the scenario's form.
func (w *world) ips(t *testing.T, pod harness.Pod) []netip.Addr {
	t.Helper()
	p, err := w.Get(w.ctx, pod)
	w.must(t, err)
	var addrs []netip.Addr
	for _, ip := range p.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		w.must(t, err)
		if w.family != IPv6 || addr.Is6() {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 {
		t.Fatalf("pod %s has no address, of %v, for the scenario", pod, p.Status.PodIPs)
	}
	return addrs
}

// addresses returns the addresses of all pods of namespaces.
func (w *world) addresses(t *testing.T, namespaces ...string) []netip.Addr {
	t.Helper()
	var all []netip.Addr
	for _, ns := range namespaces {
		addrs, err := w.Addresses(w.ctx, ns)
		w.must(t, err)
		all = append(all, addrs...)
	}
	return all
}

// clusterIPs returns a service's addresses.
func (w *world) clusterIPs(t *testing.T, ns, service string) []string {
	t.Helper()
	s, err := w.Kube.CoreV1().Services(ns).Get(w.ctx, service, metav1.GetOptions{})
	w.must(t, err)
	return s.Spec.ClusterIPs
}

// target is host:port.
func target(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// ports are the ports of protocols.
func port(p traffic.Protocol) int {
	switch p {
	case traffic.ProtocolHTTP:
		return traffic.PortHTTP
	case traffic.ProtocolEcho:
		return traffic.PortEcho
	case traffic.ProtocolGreeter:
		return traffic.PortGreeter
	case traffic.ProtocolWho:
		return traffic.PortTool
	}
	panic("unknown protocol " + p)
}

// protocols are all of them.
func protocols() []traffic.Protocol {
	return []traffic.Protocol{traffic.ProtocolHTTP, traffic.ProtocolWho, traffic.ProtocolEcho, traffic.ProtocolGreeter}
}

// expectation is what should become of connections from a pod to an address.
type expectation struct {
	from harness.Pod
	// host is a name or an address; what says in words what it is.
	host, what string
	// refused: the connection must be ended by somebody, not hang. Else every exchange must be right.
	refused bool
	// source, if any, are the addresses of which the server must see one.
	source []netip.Addr
	// protocols, if any, are those that are tried; else all.
	protocols []traffic.Protocol
}

// check makes the connections of all expectations, with every protocol, and returns one line for each that was not met.
func (w *world) check(expectations []expectation) ([]string, error) {
	byPod := map[harness.Pod][]expectation{}
	var pods []harness.Pod
	for _, e := range expectations {
		if byPod[e.from] == nil {
			pods = append(pods, e.from)
		}
		byPod[e.from] = append(byPod[e.from], e)
	}
	var unmet []string
	for _, pod := range pods {
		var attempts []traffic.Attempt
		var of []expectation
		for _, e := range byPod[pod] {
			for _, p := range e.tried() {
				attempts = append(attempts, traffic.Attempt{Target: target(e.host, port(p)), Protocol: p})
				of = append(of, e)
			}
		}
		outcomes, err := w.Dial(w.ctx, pod, traffic.DialRequest{Attempts: attempts, Label: pod.String()})
		if err != nil {
			return nil, err
		}
		for i, outcome := range outcomes {
			if complaint := of[i].judge(outcome); complaint != "" {
				unmet = append(unmet, fmt.Sprintf("%s -> %s (%s), %s: %s", pod, of[i].what, outcome.Target, outcome.Protocol, complaint))
			}
		}
	}
	return unmet, nil
}

func (e expectation) tried() []traffic.Protocol {
	if len(e.protocols) > 0 {
		return e.protocols
	}
	return protocols()
}

func (e expectation) judge(outcome traffic.Outcome) string {
	if e.refused {
		switch outcome.Kind {
		case traffic.KindReset, traffic.KindEOF, traffic.KindRefused:
			return ""
		case "":
			return "it worked, want it refused"
		}
		return fmt.Sprintf("%s (%s), want it refused at once", outcome.Kind, outcome.Error)
	}
	if outcome.Kind != "" {
		return fmt.Sprintf("%s: %s, after %s", outcome.Kind, outcome.Error, outcome.Took.Round(time.Millisecond))
	}
	if len(e.source) > 0 && outcome.Protocol != traffic.ProtocolEcho {
		seen, err := netip.ParseAddrPort(outcome.Server.Client)
		if err != nil || !slices.Contains(e.source, seen.Addr().Unmap()) {
			return fmt.Sprintf("the server saw the client as %q, want one of %v", outcome.Server.Client, e.source)
		}
	}
	return ""
}

// expect checks once: what should work works the first time.
func (w *world) expect(t *testing.T, expectations []expectation) {
	t.Helper()
	unmet, err := w.check(expectations)
	w.must(t, err)
	if len(unmet) > 0 {
		t.Errorf("%d of %d connections are not as expected:\n%s", len(unmet), len(expectations)*len(protocols()), clip(unmet, 40))
	}
}

// eventually checks until everything was as expected three times in a row.
func (w *world) eventually(t *testing.T, what string, expectations []expectation) {
	t.Helper()
	w.must(t, harness.Await(w.ctx, harness.Until{What: what, Within: converged, InARow: 3}, func(context.Context) error {
		unmet, err := w.check(expectations)
		if err == nil && len(unmet) > 0 {
			err = fmt.Errorf("%d connections are not as expected:\n%s", len(unmet), clip(unmet, 20))
		}
		return err
	}))
}

// clip joins lines, at most n of them.
func clip(lines []string, n int) string {
	if len(lines) > n {
		lines = append(slices.Clone(lines[:n]), fmt.Sprintf("... and %d more", len(lines)-n))
	}
	return strings.Join(lines, "\n")
}

// ambit is the command line client of this repository.
func ambit(c *harness.Cluster) string { return filepath.Join(c.Root, "bin", "ambit") }

// nodes are the names of the nodes, in order.
func nodes() []string { return []string{"node1", "node2"} }

// capture listens on the links of nodes for traffic.Marker until it is stopped or the test ends, and fails it if it missed
// something.
func (w *world) capture(t *testing.T, names ...string) []*harness.Capture {
	t.Helper()
	var captures []*harness.Capture
	for _, name := range names {
		capture, err := w.Capture(name, traffic.Marker)
		w.must(t, err)
		captures = append(captures, capture)
	}
	t.Cleanup(func() { stop(t, captures) })
	return captures
}

// stop ends captures; those that have ended already are left alone.
func stop(t *testing.T, captures []*harness.Capture) {
	t.Helper()
	for _, capture := range captures {
		if err := capture.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// onlyTunnels fails the test if a link saw anything between the addresses but TLS to the port for tunnels, or saw no tunnel, and so
// proves nothing.
func onlyTunnels(t *testing.T, captures []*harness.Capture, among []netip.Addr) {
	t.Helper()
	for _, capture := range captures {
		flows := capture.Flows(among...)
		if bare := harness.NotTunnelled(flows); len(bare) > 0 {
			t.Errorf("the link of %s saw %d flows between captured pods that are not tunnels:\n%s", capture.Node, len(bare), harness.Describe(bare, 10))
		}
		if len(flows) == 0 {
			t.Errorf("the link of %s saw no tunnel between captured pods", capture.Node)
		}
	}
}
