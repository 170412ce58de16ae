package scenarios

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// names: captured pods reach each other by every name, and it is the node proxies that answer their queries.
func names() scenario {
	const ns = "ambit-names"
	return scenario{
		name: "14-dns", manifest: "names.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			w.expect(t, w.everyWay(t, ns, ns, w.pairs()))
			w.ownNames(t, ns)
			for _, node := range nodes() {
				pod, err := w.PodOn(w.ctx, node, api.DefaultNamespace, "app="+api.NodeProxy)
				w.must(t, err)
				body, err := w.GetFrom(w.ctx, harness.Pod{Namespace: pod.Namespace, Name: pod.Name}, "127.0.0.1:15020", "/metrics")
				w.must(t, err)
				w.must(t, answered(string(body)))
			}
		},
	}
}

// ownNames: a pod with dnsPolicy None has names understood by its own search list, and by no other. A name with a dot at its end
// its own resolver leaves as it is, so that what is answered the proxy has understood.
func (w *world) ownNames(t *testing.T, ns string) {
	t.Helper()
	own, usual := harness.Pod{Namespace: ns, Name: "own"}, harness.Pod{Namespace: ns, Name: "client2"}
	until := harness.Until{What: "names are understood by each pod's own search list", Within: converged, InARow: 2}
	w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
		for _, tc := range []struct {
			from   harness.Pod
			name   string
			server string // empty: there is no such name
		}{
			{own, "db", "server1"},
			{own, "db.", "server1"},
			{own, "db.own.example.com", "server1"},
			{own, "server2." + ns + ".svc.cluster.local", "server2"},
			{own, "server2.", ""},
			{usual, "server2.", "server2"},
			{usual, "db.own.example.com", "server1"},
			{usual, "db.", ""},
		} {
			outcomes, err := w.Dial(ctx, tc.from, traffic.DialRequest{
				Attempts: []traffic.Attempt{{Target: target(tc.name, traffic.PortTool), Protocol: traffic.ProtocolWho}}, Label: "names"})
			if err != nil {
				return err
			}
			switch o := outcomes[0]; {
			case tc.server == "" && o.Kind != traffic.KindName:
				return fmt.Errorf("%s to %s: reached %q, %s %s; want no such name", tc.from, tc.name, o.Server.Pod, o.Kind, o.Error)
			case tc.server != "" && (o.Kind != "" || o.Server.Pod != tc.server):
				return fmt.Errorf("%s to %s: reached %q, %s %s; want %s", tc.from, tc.name, o.Server.Pod, o.Kind, o.Error, tc.server)
			}
		}
		return nil
	}))
}

// answered fails unless a proxy's metrics tell of name queries that it was asked.
func answered(metrics string) error {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "istio_dns_requests_total{") && strings.Contains(line, `request_query_type="a"`) {
			return nil
		}
	}
	return errors.New("no istio_dns_requests_total with query type a")
}
