package scenarios

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// egress: out of the mesh by host name and by range, and not at all under REGISTRY_ONLY.
func egress() scenario {
	const in, out = "ambit-egress-in", "ambit-egress-out"
	client := harness.Pod{Namespace: in, Name: "client1"}
	return scenario{
		name: "15-egress", manifest: "egress.yaml", namespaces: []string{in, out}, enrolled: []string{in},
		tell: func(t *testing.T, w *world) {
			var vips []netip.Addr
			w.must(t, harness.Await(w.ctx, harness.Until{What: "addresses of ServiceEntry by-name", Within: converged}, func(ctx context.Context) (err error) {
				vips, err = w.assigned(ctx, in, "by-name")
				return err
			}))
			w.entryCondition(t, in, "by-name-younger", "Conflicted")
			node, err := w.nodeIP("node2")
			w.must(t, err)
			byNode, err := w.Kube.CoreV1().Services(out).Get(w.ctx, "by-node", metav1.GetOptions{})
			w.must(t, err)
			unknown := target(node.String(), int(byNode.Spec.Ports[0].NodePort))

			has := w.ips(t, client)
			known := func(t *testing.T) {
				t.Helper()
				for _, vip := range vips {
					if !slices.ContainsFunc(has, func(a netip.Addr) bool { return a.Is4() == vip.Is4() }) {
						continue // the pod cannot send to that family
					}
					w.awaitDial(t, client, target(vip.String(), traffic.PortTool), "server1", false)
				}
			}
			known(t)
			w.awaitDial(t, client, unknown, "server2", false)
			besides := w.machine(t, in)

			restore := w.registryOnly(t)
			defer restore()
			w.awaitDial(t, client, unknown, "", true)
			known(t)
			besides(t, client)
			// The nodes' range, since a node's own address is not an entry's to have.
			bits := 24
			if node.Is6() {
				bits = 64
			}
			nodes, err := node.Prefix(bits)
			w.must(t, err)
			entry := fmt.Appendf(nil, `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: node, namespace: %s},
				spec: {hosts: [node.example.com], addresses: ["%s"], resolution: NONE, ports: [{number: %d, name: tcp, protocol: TCP}]}}`,
				in, nodes, byNode.Spec.Ports[0].NodePort)
			w.must(t, w.Apply(w.ctx, entry))
			w.awaitDial(t, client, unknown, "server2", false)
			w.must(t, w.Delete(w.ctx, entry))
			w.awaitDial(t, client, unknown, "", true)
			restore()
			w.awaitDial(t, client, unknown, "server2", false)
		},
	}
}

// machine makes a server on a machine that is not a node known by a WorkloadEntry, which an entry selects. What it returns checks
// that a pod reaches it by the entry's name, and no longer once the WorkloadEntry is gone.
func (w *world) machine(t *testing.T, ns string) (check func(*testing.T, harness.Pod)) {
	t.Helper()
	node, addr, err := w.Beside()
	w.must(t, err)
	ctx, cancel := context.WithCancel(w.ctx)
	ports, ended := make(chan map[int]net.Addr, 1), make(chan error, 1)
	go func() {
		ended <- node.Do(func() error {
			return traffic.Serve(ctx, traffic.ServeConfig{
				Host:      addr.String(),
				Ports:     map[int]int{traffic.PortHTTP: 0, traffic.PortEcho: 0, traffic.PortGreeter: 0, traffic.PortTool: 0, traffic.PortGRPC: 0},
				Listening: func(m map[int]net.Addr) { ports <- m }, Logger: slog.New(slog.DiscardHandler),
			})
		})
	}()
	t.Cleanup(func() {
		cancel()
		w.must(t, <-ended)
	})
	var port uint16
	select {
	case m := <-ports:
		port = netip.MustParseAddrPort(m[traffic.PortTool].String()).Port()
	case err := <-ended:
		ended <- nil
		w.must(t, err)
	}
	entry := fmt.Appendf(nil, `{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: machine, namespace: %s, labels: {app: machine}},
		spec: {address: "%s", ports: {tcp-tool: %d}, labels: {app: machine}}}`, ns, addr, port)
	w.must(t, w.Apply(w.ctx, entry))
	me, err := os.Hostname()
	w.must(t, err)
	return func(t *testing.T, from harness.Pod) {
		t.Helper()
		to := target("machine.example.com", traffic.PortTool)
		w.awaitDial(t, from, to, me, false)
		w.must(t, w.Delete(w.ctx, entry))
		w.awaitDial(t, from, to, "", true)
	}
}

var serviceEntries = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}

// assigned reads the addresses that the control plane gave to an entry, one of each family.
func (w *world) assigned(ctx context.Context, ns, name string) ([]netip.Addr, error) {
	u, err := w.Dynamic.Resource(serviceEntries).Namespace(ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	list, _, err := unstructured.NestedSlice(u.Object, "status", "addresses")
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, v := range list {
		m, _ := v.(map[string]any)
		addr, err := netip.ParseAddr(fmt.Sprint(m["value"]))
		if err != nil {
			return nil, err
		}
		out = append(out, addr)
	}
	if len(out) != 2 {
		return nil, fmt.Errorf("status.addresses is %v", list)
	}
	return out, nil
}

// entryCondition waits for what an entry says of itself.
func (w *world) entryCondition(t *testing.T, ns, name, reason string) {
	t.Helper()
	what := fmt.Sprintf("the condition ZtunnelAccepted of ServiceEntry %s/%s", ns, name)
	w.must(t, harness.Await(w.ctx, harness.Until{What: what, Within: converged}, func(ctx context.Context) error {
		u, err := w.Dynamic.Resource(serviceEntries).Namespace(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		list, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
		if err != nil {
			return err
		}
		for _, v := range list {
			if c, _ := v.(map[string]any); c["type"] == "ZtunnelAccepted" && c["reason"] == reason {
				return nil
			}
		}
		return fmt.Errorf("want %s, there is %v", reason, list)
	}))
}

// nodeIP is a node's own first address, of the family that services of one family have.
func (w *world) nodeIP(name string) (netip.Addr, error) {
	n, err := w.Kube.CoreV1().Nodes().Get(w.ctx, name, metav1.GetOptions{})
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("node %s has no address", name)
}

// awaitDial waits until a connection reaches the pod called server, or is refused.
func (w *world) awaitDial(t *testing.T, from harness.Pod, to, server string, refused bool) {
	t.Helper()
	what := fmt.Sprintf("%s reaches %q at %s (refused: %v)", from, server, to, refused)
	w.must(t, harness.Await(w.ctx, harness.Until{What: what, Within: converged, InARow: 2}, func(ctx context.Context) error {
		outcomes, err := w.Dial(ctx, from, traffic.DialRequest{
			Attempts: []traffic.Attempt{{Target: to, Protocol: traffic.ProtocolWho}}, Label: "egress"})
		if err != nil {
			return err
		}
		o := outcomes[0]
		if complaint := (expectation{refused: refused}).judge(o); complaint != "" {
			return fmt.Errorf("%s", complaint)
		}
		if !refused && o.Server.Pod != server {
			return fmt.Errorf("reached %q", o.Server.Pod)
		}
		return nil
	}))
}

// registryOnly has connections refused to what the mesh does not know.
func (w *world) registryOnly(t *testing.T) (restore func()) {
	return w.settings(t, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
}

// settings adds a line to the mesh's settings, and returns what puts them back, which may be called more than once.
func (w *world) settings(t *testing.T, line string) (restore func()) {
	t.Helper()
	maps := w.Kube.CoreV1().ConfigMaps(api.DefaultNamespace)
	set := func(change func(string) string) (before string) {
		cm, err := maps.Get(w.ctx, api.MeshConfigMap, metav1.GetOptions{})
		w.must(t, err)
		before = cm.Data[api.MeshConfigKey]
		cm.Data[api.MeshConfigKey] = change(before)
		_, err = maps.Update(w.ctx, cm, metav1.UpdateOptions{})
		w.must(t, err)
		return before
	}
	before := set(func(text string) string { return text + "\n" + line + "\n" })
	return func() { set(func(string) string { return before }) }
}
