package telemetry_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// TestLookups counts by who asks and for whom, and drops a series with the last workload that has it.
func TestLookups(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	l := telemetry.NewLookups(reg)
	bank, other := &directory.Workload{UID: "bank", Hostname: "bank.example.com"}, &directory.Workload{UID: "other", Hostname: "other.example.com"}
	l.Count(client(1), bank)
	l.Count(client(1), bank)
	l.Count(client(2), bank) // of the same deployment
	l.Count(client(1), other)
	series := func(hostname, value string) string {
		return `istio_on_demand_dns_total{hostname="` + hostname + `",source_app="curl",source_canonical_revision="latest",source_canonical_service="curl",` +
			`source_cluster="Kubernetes",source_principal="spiffe://cluster.local/ns/front/sa/curl",source_version="latest",source_workload="curl",` +
			`source_workload_namespace="front"} ` + value + "\n"
	}
	want := func(when string, lines ...string) {
		t.Helper()
		text := ""
		if len(lines) > 0 {
			text = "# HELP istio_on_demand_dns_total Connections to workloads that are known by a host name only.\n" +
				"# TYPE istio_on_demand_dns_total counter\n" + strings.Join(lines, "")
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(text)); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	want("all", series("bank.example.com", "3"), series("other.example.com", "1"))
	l.Forget("other")
	want("without one that was asked for", series("bank.example.com", "3"))
	l.Forget(client(1).UID)
	want("one client is left", series("bank.example.com", "3"))
	l.Count(client(2), bank)
	l.Forget("nobody")
	want("it counts on", series("bank.example.com", "4"))
	l.Forget(client(2).UID)
	want("none is left")

	var nobody *telemetry.Lookups
	nobody.Count(client(1), bank)
	nobody.Forget("bank")
}
