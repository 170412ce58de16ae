package scenarios

import (
	"errors"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// names: captured pods reach each other by every name, and it is the node proxies that answer their queries.
func names() scenario {
	const ns = "ambit-names"
	return scenario{
		name: "14-dns", manifest: "names.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			w.expect(t, w.everyWay(t, ns, ns, w.pairs()))
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

// answered fails unless a proxy's metrics tell of name queries that it was asked.
func answered(metrics string) error {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "istio_dns_requests_total{") && strings.Contains(line, `request_query_type="a"`) {
			return nil
		}
	}
	return errors.New("no istio_dns_requests_total with query type a")
}
