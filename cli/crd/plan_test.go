package crd

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/deploy"
)

// parsed are the definitions that the chart carries; parsing them takes most of a second under the race detector.
var parsed = sync.OnceValues(func() ([]*Definition, error) {
	texts, err := deploy.CRDs()
	if err != nil {
		return nil, err
	}
	return Parse(texts)
})

// shipped returns copies of parsed.
func shipped(t *testing.T) []*Definition {
	t.Helper()
	defs, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	copies := make([]*Definition, len(defs))
	for i, d := range defs {
		copies[i] = d.DeepCopy()
	}
	return copies
}

// cluster makes the definitions of a cluster of those shipped, as changed by change; false leaves one out.
func cluster(t *testing.T, change func(*Definition) bool) map[string]*Definition {
	t.Helper()
	theirs := map[string]*Definition{}
	for _, d := range shipped(t) {
		if change(d) {
			theirs[d.Name] = d
		}
	}
	return theirs
}

func isGateway(d *Definition) bool { return d.Spec.Group == gatewayGroup }

func TestPlan(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Definition) bool
		// want are the steps other than the action that most get.
		most Action
		want map[string]string // name -> action: reason
	}{
		{name: "nothing there", change: func(*Definition) bool { return false }, most: Create},
		{name: "the same", change: func(*Definition) bool { return true }, most: Update},
		{
			name: "an older bundle is updated, and what it lacks made",
			change: func(d *Definition) bool {
				if isGateway(d) {
					d.Annotations[bundleVersion] = "v1.2.0"
				}
				return d.Name != "listenersets.gateway.networking.k8s.io"
			},
			most: Update,
			want: map[string]string{"listenersets.gateway.networking.k8s.io": "create: "},
		},
		{
			name: "an Istio kind with more fields is newer",
			change: func(d *Definition) bool {
				if d.Name == "peerauthentications.security.istio.io" {
					spec := d.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
					for _, name := range []string{"w", "x", "y", "z"} {
						spec.Properties[name] = spec.Properties["mtls"]
					}
				}
				return true
			},
			most: Update,
			want: map[string]string{"peerauthentications.security.istio.io": "leave alone: it is newer: it has v1.spec.w, v1.spec.w.mode, v1.spec.x and 5 more fields"},
		},
		{
			name: "an Istio kind with another version is newer",
			change: func(d *Definition) bool {
				if d.Name == "workloadentries.networking.istio.io" {
					d.Spec.Versions[0].Name = "v2"
					d.Spec.Versions = d.Spec.Versions[:1]
					d.Spec.Versions[0].Schema = nil
				}
				return true
			},
			most: Update,
			want: map[string]string{"workloadentries.networking.istio.io": "leave alone: it is newer: it has v2"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := map[string]string{}
			for _, step := range Plan(shipped(t), cluster(t, test.change)) {
				if step.Action != test.most || step.Reason != "" {
					got[step.Name] = string(step.Action) + ": " + step.Reason
				}
			}
			if test.want == nil {
				test.want = map[string]string{}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPlanForeignBundle: a bundle of somebody else is left whole, and Istio's kinds are not affected.
func TestPlanForeignBundle(t *testing.T) {
	for name, test := range map[string]struct {
		version, channel, reason string
	}{
		"newer":        {"v99.0.0", "standard", "which is newer than v"},
		"experimental": {"v1.0.0", "experimental", "is there in its experimental channel"},
	} {
		t.Run(name, func(t *testing.T) {
			theirs := cluster(t, func(d *Definition) bool {
				if d.Name != "gateways.gateway.networking.k8s.io" {
					return false
				}
				d.Annotations[bundleVersion], d.Annotations[bundleChannel] = test.version, test.channel
				return true
			})
			for _, step := range Plan(shipped(t), theirs) {
				switch gateway := strings.HasSuffix(step.Name, gatewayGroup); {
				case gateway && (step.Action != LeaveBe || !strings.Contains(step.Reason, test.reason)):
					t.Errorf("%s: %s (%s), want it left alone", step.Name, step.Action, step.Reason)
				case !gateway && step.Action != Create:
					t.Errorf("%s: %s, want it created", step.Name, step.Action)
				}
			}
		})
	}
}

func TestAppliedByUs(t *testing.T) {
	for name, test := range map[string]struct {
		managers []metav1.ManagedFieldsEntry
		want     bool
	}{
		"ours":     {[]metav1.ManagedFieldsEntry{{Manager: FieldManager}, {Manager: "kube-apiserver", Subresource: "status"}}, true},
		"shared":   {[]metav1.ManagedFieldsEntry{{Manager: FieldManager}, {Manager: "helm"}}, false},
		"another":  {[]metav1.ManagedFieldsEntry{{Manager: "kubectl"}}, false},
		"nobody's": {nil, false},
	} {
		d := &Definition{ObjectMeta: metav1.ObjectMeta{ManagedFields: test.managers}}
		if got := appliedByUs(d); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
