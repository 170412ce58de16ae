package cluster_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
)

func backendTLS(t *testing.T, spec string) *cluster.BackendTLSPolicy {
	t.Helper()
	objects, err := clustertest.Parse([]byte("kind: BackendTLSPolicy\nmetadata: {name: p, namespace: ns}\nspec: " + spec + `
status:
  ancestors:
  - {controllerName: example.com/edge, ancestorRef: {name: gw}}
  - {controllerName: istio.io/mesh-controller, ancestorRef: {group: "", kind: Service, name: web}, conditions: [{type: Accepted, status: "True", observedGeneration: 4, lastTransitionTime: "2026-01-01T00:00:00Z", reason: Accepted, message: m}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	return objects[0].(*cluster.BackendTLSPolicy)
}

// TestBackendTLSPolicy: what is malformed, or not known to this release, is a fault, and its targets can still be told.
func TestBackendTLSPolicy(t *testing.T) {
	const target = `targetRefs: [{group: "", kind: Service, name: web, sectionName: https}]`
	for _, tc := range []struct{ spec, fault string }{
		{`{` + target + `, validation: {hostname: a.example, wellKnownCACertificates: System}}`, ""},
		{`{` + target + `, validation: {hostname: a.example, caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]}}`, ""},
		{`{` + target + `, validation: {hostname: a.example}}`, "one of caCertificateRefs and wellKnownCACertificates"},
		{`{` + target + `, validation: {hostname: a.example, wellKnownCACertificates: Browser}}`, `"Browser" is not supported`},
		{`{` + target + `, validation: {wellKnownCACertificates: System}}`, "hostname: required"},
		{`{` + target + `, validation: {hostname: a.example, wellKnownCACertificates: System, pins: [x]}}`, "spec.validation.pins is not known"},
		{`{` + target + `, validation: {hostname: [a]}}`, "hostname"},
		{`{` + target + `, validation: {hostname: a.example, wellKnownCACertificates: System, subjectAltNames: [{type: Email, hostname: x}]}}`, `"Email" is not supported`},
		{`{` + target + `, validation: {hostname: a.example, wellKnownCACertificates: System, subjectAltNames: [{type: URI, hostname: x}]}}`, "a name is required"},
		{`{` + target + `, validation: {hostname: a.example, wellKnownCACertificates: System}, options: {x/y: z}}`, `"x/y" is not supported`},
	} {
		p := backendTLS(t, tc.spec)
		if got := strings.Join(p.Faults, "; "); (got == "") != (tc.fault == "") || !strings.Contains(got, tc.fault) {
			t.Errorf("%s: faults %q, want %q", tc.spec, got, tc.fault)
		}
		if len(p.Targets) != 1 || p.Targets[0].Ref != cluster.ServiceRef(cluster.Key{Namespace: "ns", Name: "web"}) || p.Targets[0].Section != "https" {
			t.Errorf("%s: targets %v", tc.spec, p.Targets)
		}
		want := []cluster.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted", Message: "m", Generation: 4}}
		if len(p.Seen) != 1 || !cmp.Equal(p.Seen[0].Conditions, want) {
			t.Errorf("%s: seen %+v", tc.spec, p.Seen)
		}
		if again := backendTLS(t, tc.spec); !p.Equal(again) {
			t.Errorf("%s: is not equal to itself", tc.spec)
		}
	}
}
