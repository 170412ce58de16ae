package scenarios

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/harness"
)

// capturedToCaptured: by service name, service address and pod address, and from a pod to itself.
func capturedToCaptured() scenario {
	const ns = "ambit-captured"
	return scenario{
		name: "01-captured-to-captured", manifest: "captured.yaml", namespaces: []string{ns}, enrolled: []string{ns},
		tell: func(t *testing.T, w *world) {
			ns := w.ns
			began := time.Now()
			captures := w.capture(t, nodes()...)
			for range 3 {
				w.expect(t, w.everyWay(t, ns, ns, w.pairs()))
			}
			onlyTunnels(t, captures, w.addresses(t, ns))
			w.bothIdentities(t, ns, began)
		},
	}
}

// pair is two pods of quartets.
type pair struct{ from, to string }

// pairs are the clients with the server on the same node and on the other one, and servers with themselves.
func (w *world) pairs() []pair {
	return append(w.crossings(), pair{"server1", "server1"}, pair{"server2", "server2"})
}

// crossings are the clients with the server on the same node and on the other one.
func (w *world) crossings() []pair {
	return []pair{{"client1", "server1"}, {"client1", "server2"}, {"client2", "server1"}, {"client2", "server2"}}
}

// everyWay expects each pair to work by service name, by every address of the service and by every address of the pod, and the
// server to see the client pod's own address.
func (w *world) everyWay(t *testing.T, fromNS, toNS string, pairs []pair) []expectation {
	t.Helper()
	var all []expectation
	for _, pair := range pairs {
		from, to := harness.Pod{Namespace: fromNS, Name: pair.from}, harness.Pod{Namespace: toNS, Name: pair.to}
		source := w.ips(t, from)
		add := func(host, what string) {
			all = append(all, expectation{from: from, host: host, what: pair.to + " by " + what, source: source})
		}
		add(fmt.Sprintf("%s.%s.svc.cluster.local", to.Name, to.Namespace), "service name")
		add(fmt.Sprintf("%s.%s", to.Name, to.Namespace), "short service name")
		for _, ip := range w.clusterIPs(t, to.Namespace, to.Name) {
			add(ip, "service address")
		}
		for _, ip := range w.ips(t, to) {
			add(ip.String(), "pod address")
		}
	}
	return all
}

// bothIdentities: for a connection across nodes, the client's proxy logs it as outbound and the server's as inbound, both with
// both identities.
func (w *world) bothIdentities(t *testing.T, ns string, since time.Time) {
	t.Helper()
	client := fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/client", ns)
	server := fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/server", ns)
	for _, node := range nodes() {
		for _, direction := range []string{"outbound", "inbound"} {
			what := fmt.Sprintf("%s connection of %s to %s in the access log of %s", direction, client, server, node)
			w.must(t, harness.Await(w.ctx, harness.Until{What: what, Within: converged}, func(ctx context.Context) error {
				lines, err := w.AccessLog(ctx, node, since)
				if err != nil {
					return err
				}
				for _, line := range lines {
					if line.Direction == direction && line.SourceIdentity == client && line.DestIdentity == server {
						return nil
					}
				}
				return fmt.Errorf("none in %d lines with two identities", len(lines))
			}))
		}
	}
}
