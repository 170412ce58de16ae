package scenarios

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy/samples/traffic"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// seen: a captured pod scrapes the node proxies, as Prometheus would, and `ambit ztunnel` shows what they know and carry.
func seen() scenario {
	const ns = "ambit-seen"
	return scenario{
		name: "17-seen-from-outside", manifest: "seen.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			client, server := harness.Pod{Namespace: ns, Name: "client1"}, harness.Pod{Namespace: ns, Name: "server2"}
			w.expect(t, w.everyWay(t, ns, ns, []pair{{client.Name, server.Name}}))
			w.scraped(t, client)

			w.shows(t, []string{"workload", "--workload-namespace", ns},
				`client1 +\S+ +node1 +None +HBONE`, `server2 +\S+ +node2 +None +HBONE`)
			w.shows(t, []string{"service", "--service-namespace", ns, "--node", "node2"}, `server1 +\S+ +None +1/1`)
			w.shows(t, []string{"certificate", "--node", "node1"}, `/ns/`+ns+`/sa/client +Leaf +Available +true`)

			inside, err := w.Inside(w.ctx, client)
			w.must(t, err)
			held, err := inside.DialContext(w.ctx, "tcp", target(w.ips(t, server)[0].String(), traffic.PortEcho))
			w.must(t, err)
			defer held.Close()
			w.shows(t, []string{"connection", client.Name + "." + ns}, `client1.`+ns+` +Outbound +client1.\S+ +server2.\S+:15008 +server2.\S+ +HBONE`)
			w.shows(t, []string{"connection", "pod/" + server.Name, "-n", ns}, `server2.`+ns+` +Inbound +server2.\S+ +client1.\S+ .*HBONE`)

			w.shows(t, []string{"log", "--node", "node1", "--level", "dns=debug"}, `node1 +.*dns=debug`)
			w.shows(t, []string{"log", "--reset"}, `node1 `, `node2 `)
			out, err := w.Run(w.ctx, ambit(w.Cluster), "ztunnel", "service", "--node", "node9")
			if err == nil || !strings.Contains(out, "there is no node node9") {
				t.Errorf("ambit ztunnel of a node that is not there: %v: %s", err, out)
			}
		},
	}
}

// scraped has a captured pod get the metrics of both node proxies, which have counted its connection.
func (w *world) scraped(t *testing.T, client harness.Pod) {
	t.Helper()
	for _, node := range nodes() {
		proxy, err := w.PodOn(w.ctx, node, api.DefaultNamespace, harness.Ztunnel().Selector())
		w.must(t, err)
		want := fmt.Sprintf(`(?m)^ambit_tcp_connect_duration_seconds_count\{connection_security_policy="mutual_tls",.*,destination_workload_namespace=%q,`, client.Namespace)
		until := harness.Until{What: "metrics of " + proxy.Name + ", got by " + client.String(), Within: converged}
		w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
			metrics, err := w.GetFrom(ctx, client, target(proxy.Status.PodIP, api.PortStats), "/metrics")
			if err != nil {
				return err
			}
			if !regexp.MustCompile(want).Match(metrics) {
				return fmt.Errorf("no %s in %d bytes", want, len(metrics))
			}
			return nil
		}))
	}
}

// shows runs `ambit ztunnel` until its answer has all of the patterns.
func (w *world) shows(t *testing.T, args []string, patterns ...string) {
	t.Helper()
	const once = 20 * time.Second // beside eight other scenarios, one of which opens a thousand connections at once
	until := harness.Until{What: "ambit ztunnel " + strings.Join(args, " "), Within: 3 * once}
	w.must(t, harness.Await(w.ctx, until, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, once)
		defer cancel()
		out, err := w.Run(ctx, ambit(w.Cluster), append([]string{"ztunnel"}, args...)...)
		if err != nil {
			return err
		}
		for _, p := range patterns {
			if !regexp.MustCompile(p).MatchString(out) {
				return fmt.Errorf("no %s in\n%s", p, out)
			}
		}
		return nil
	}))
}
