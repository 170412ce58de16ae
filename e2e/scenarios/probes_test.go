package scenarios

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// probes: the kubelet's probes pass whether or not plaintext is taken, and what pods need of the cluster itself works.
func probes() scenario {
	const permissive, strict = "ambit-probes", "ambit-probes-strict"
	return scenario{
		name: "03-probes-dns-api-server", manifest: "probes.yaml", namespaces: []string{permissive, strict}, enrolled: []string{permissive, strict},
		tell: func(t *testing.T, w *world) {
			permissive, strict := w.family.Namespace(permissive), w.family.Namespace(strict)
			// Ready once can be luck, or from before the policy: fifteen periods of the probes in a row are not.
			for _, ns := range []string{permissive, strict} {
				until := harness.Until{What: "probes of " + ns + " pass", Within: time.Minute, InARow: 15, Every: time.Second}
				w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error { return w.healthy(ctx, ns) }))
			}
			w.probed(t, strict)
			w.strictHolds(t, strict)
			for _, node := range nodes() {
				w.clusterServices(t, harness.Pod{Namespace: permissive, Name: "http-" + node})
			}
			w.headless(t, permissive)
		},
	}
}

// healthy wants every pod ready and none ever restarted.
func (w *world) healthy(ctx context.Context, ns string) error {
	pods, err := w.Pods(ctx, ns, "")
	if err != nil {
		return err
	}
	for i := range pods {
		if !harness.PodReady(&pods[i]) {
			return fmt.Errorf("%s: %s", pods[i].Name, harness.PodState(&pods[i]))
		}
		for _, status := range pods[i].Status.ContainerStatuses {
			if status.RestartCount > 0 {
				return fmt.Errorf("%s was restarted: %s", pods[i].Name, harness.PodState(&pods[i]))
			}
		}
	}
	return nil
}

// strictHolds: the probes pass although the policy holds: plaintext from a pod of the same node that is not captured is refused.
// That pod is the agent's, whose network namespace the test borrows.
func (w *world) strictHolds(t *testing.T, ns string) {
	t.Helper()
	for _, node := range nodes() {
		agent, err := w.PodOn(w.ctx, node, "istio-system", harness.Agent().Selector())
		w.must(t, err)
		inside, err := w.Inside(w.ctx, harness.Pod{Namespace: agent.Namespace, Name: agent.Name})
		w.must(t, err)
		for _, server := range w.ips(t, harness.Pod{Namespace: ns, Name: "http-" + node}) {
			if err := askHealth(w.ctx, inside, server); err == nil {
				t.Errorf("plaintext to %s of %s from a pod of %s that is not captured works, want it refused", server, ns, node)
			}
		}
	}
}

// probed: what a node's own programs send to its pods gets through in plain, by every address of a pod: the kubelet's probes use
// the first one only.
func (w *world) probed(t *testing.T, ns string) {
	t.Helper()
	for _, name := range nodes() {
		node, err := w.Node(name)
		w.must(t, err)
		for _, server := range w.ips(t, harness.Pod{Namespace: ns, Name: "http-" + name}) {
			if err := askHealth(w.ctx, node, server); err != nil {
				t.Errorf("from %s to its pod's %s: %v", name, server, err)
			}
		}
	}
}

// askHealth asks a pod as an HTTP probe does.
func askHealth(ctx context.Context, from dialer, server netip.Addr) error {
	conn, err := from.DialContext(ctx, "tcp", target(server.String(), traffic.PortHTTP))
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET /healthz HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// clusterServices: names, the API server and headless services, from a captured pod.
func (w *world) clusterServices(t *testing.T, pod harness.Pod) {
	t.Helper()
	api := w.clusterIPs(t, "default", "kubernetes")[0]
	resolved, err := harness.Do[traffic.ResolveReport](w.ctx, w.Cluster, pod, traffic.VerbResolve, traffic.ResolveRequest{
		Names: []string{"kubernetes.default.svc.cluster.local", "kubernetes.default"},
	})
	w.must(t, err)
	for name, addresses := range resolved.Addresses {
		if !slices.Contains(addresses, api) {
			t.Errorf("%s resolves %s to %v, want %s among them", pod, name, addresses, api)
		}
	}
	if len(resolved.Errors) > 0 {
		t.Errorf("%s resolves names: %v", pod, resolved.Errors)
	}
	answer, err := harness.Do[traffic.APIServerReport](w.ctx, w.Cluster, pod, traffic.VerbAPIServer, traffic.APIServerRequest{})
	if err != nil || answer.Status != http.StatusOK {
		t.Errorf("%s asks the API server: %+v, %v", pod, answer, err)
	}
}

// headless: the service's name stands for all its pods, each pod has a name of its own, and both work.
func (w *world) headless(t *testing.T, ns string) {
	t.Helper()
	service := fmt.Sprintf("peers.%s.svc.cluster.local", ns)
	var expectations []expectation
	for _, from := range nodes() {
		pod := harness.Pod{Namespace: ns, Name: "http-" + from}
		resolved, err := harness.Do[traffic.ResolveReport](w.ctx, w.Cluster, pod, traffic.VerbResolve, traffic.ResolveRequest{Names: []string{service}})
		w.must(t, err)
		if got, want := len(resolved.Addresses[service]), len(w.addresses(t, ns)); got < 8 || want%got != 0 {
			t.Errorf("%s resolves %s to %v, want an address for each of 8 pods", pod, service, resolved.Addresses[service])
		}
		for _, to := range nodes() {
			for _, kind := range []string{"tcp", "exec"} {
				name := kind + "-" + to
				expectations = append(expectations, expectation{from: pod, host: name + "." + service, what: name + " by its name in a headless service", source: w.ips(t, pod)})
			}
		}
		expectations = append(expectations, expectation{from: pod, host: service, what: "headless service"})
	}
	w.expect(t, expectations)
}
