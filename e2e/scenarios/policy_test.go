package scenarios

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// authorization: policies by identity, by port and by address, for captured and uncaptured clients, and what they say of themselves.
func authorization() scenario {
	const in, out = "ambit-policy-in", "ambit-policy-out"
	return scenario{
		name: "13-policy", manifest: "policy.yaml", namespaces: []string{in, out}, enrolled: []string{in},
		tell: func(t *testing.T, w *world) {
			inside, outside := w.byAddress(t, in, in, w.crossings()), w.byAddress(t, out, in, w.crossings())
			among := w.byAddress(t, in, in, []pair{{"server1", "server2"}, {"server2", "server1"}})
			all := slices.Concat(inside, outside, among)
			w.expect(t, all)

			began := time.Now()
			w.apply(t, "policy-identity.yaml")
			w.eventually(t, "only the clients' identity is let in", slices.Concat(inside, refused(outside), refused(among)))
			w.condition(t, in, "clients", "ZtunnelAccepted", "True", "Accepted")
			w.denied(t, began, "no ALLOW policy matches; there are "+in+"/clients")
			w.remove(t, "policy-identity.yaml")
			w.eventually(t, "everybody is let in again", all)

			w.apply(t, "policy-port.yaml")
			w.eventually(t, "one port is closed", slices.Concat(
				only(all, traffic.ProtocolHTTP, traffic.ProtocolGreeter, traffic.ProtocolWho), refused(only(all, traffic.ProtocolEcho))))
			w.denied(t, began, "denied by policy "+in+"/no-echo")
			w.remove(t, "policy-port.yaml")

			var blocks []string
			for _, ip := range append(w.ips(t, harness.Pod{Namespace: in, Name: "client1"}), w.ips(t, harness.Pod{Namespace: out, Name: "client2"})...) {
				blocks = append(blocks, fmt.Sprintf("%q", ip))
			}
			byAddress := fmt.Appendf(nil, `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: addresses, namespace: %s},
				spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [%s]}}]}]}}`, in, strings.Join(blocks, ", "))
			w.must(t, w.Apply(w.ctx, byAddress))
			shut := func(e expectation) bool {
				return e.from == harness.Pod{Namespace: in, Name: "client1"} || e.from == harness.Pod{Namespace: out, Name: "client2"}
			}
			var some []expectation
			for _, e := range all {
				e.refused = shut(e)
				some = append(some, e)
			}
			w.eventually(t, "two addresses are shut out", some)
			w.must(t, w.Delete(w.ctx, byAddress))

			w.apply(t, "policy-http.yaml")
			w.eventually(t, "a rule of layer 7 allows nothing", refused(all))
			w.condition(t, in, "gets", "ZtunnelAccepted", "False", "UnsupportedValue")
			w.remove(t, "policy-http.yaml")
			w.eventually(t, "everybody is let in in the end", all)
		},
	}
}

// byAddress expects each pair to work by every address of the pod.
func (w *world) byAddress(t *testing.T, fromNS, toNS string, pairs []pair) []expectation {
	t.Helper()
	var all []expectation
	for _, pair := range pairs {
		from, to := harness.Pod{Namespace: fromNS, Name: pair.from}, harness.Pod{Namespace: toNS, Name: pair.to}
		for _, ip := range w.ips(t, to) {
			all = append(all, expectation{from: from, host: ip.String(), what: pair.to + " by pod address", source: w.ips(t, from)})
		}
	}
	return all
}

// refused are the same expectations, of connections that are refused.
func refused(in []expectation) []expectation {
	out := slices.Clone(in)
	for i := range out {
		out[i].refused = true
	}
	return out
}

// only are the same expectations, of some protocols.
func only(in []expectation, protocols ...traffic.Protocol) []expectation {
	out := slices.Clone(in)
	for i := range out {
		out[i].protocols = protocols
	}
	return out
}

// condition waits for what a policy says of itself.
func (w *world) condition(t *testing.T, ns, name, condition, status, reason string) {
	t.Helper()
	w.conditionOf(t, "authorizationpolicies", ns, name, condition, status, reason)
}

func (w *world) conditionOf(t *testing.T, resource, ns, name, condition, status, reason string) {
	t.Helper()
	policies := w.Dynamic.Resource(schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: resource}).Namespace(ns)
	what := fmt.Sprintf("the condition %s of %s %s/%s", condition, resource, ns, name)
	w.must(t, harness.Await(w.ctx, harness.Until{What: what, Within: converged}, func(ctx context.Context) error {
		u, err := policies.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		list, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
		if err != nil {
			return err
		}
		for _, v := range list {
			c, _ := v.(map[string]any)
			if c["type"] == condition && c["status"] == status && c["reason"] == reason {
				return nil
			}
		}
		return fmt.Errorf("want %s %s, there is %v", status, reason, list)
	}))
}

// denied waits until the proxies of both nodes have logged a refusal with that reason.
func (w *world) denied(t *testing.T, since time.Time, reason string) {
	t.Helper()
	for _, node := range nodes() {
		what := fmt.Sprintf("a refusal by %q in the log of the proxy on %s", reason, node)
		w.must(t, harness.Await(w.ctx, harness.Until{What: what, Within: converged}, func(ctx context.Context) error {
			pod, err := w.PodOn(ctx, node, api.DefaultNamespace, harness.Ztunnel().Selector())
			if err != nil {
				return err
			}
			text, err := w.Logs(ctx, harness.Pod{Namespace: pod.Namespace, Name: pod.Name}, since)
			if err == nil && !strings.Contains(text, reason) {
				err = fmt.Errorf("none in %d bytes of log", len(text))
			}
			return err
		}))
	}
}
