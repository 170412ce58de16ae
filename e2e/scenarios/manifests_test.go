package scenarios

import (
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/e2e/harness"
)

func TestManifests(t *testing.T) {
	entries, err := manifests.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() == "parts.yaml" {
			continue
		}
		raw, err := Manifest(entry.Name(), "")
		if err != nil {
			t.Error(err)
			continue
		}
		objects, err := harness.Objects(raw)
		if err != nil {
			t.Errorf("%s: %v\n%s", entry.Name(), err, raw)
			continue
		}
		if len(objects) == 0 {
			t.Errorf("%s: no objects", entry.Name())
		}
		for _, object := range objects {
			if object.GetKind() == "" || object.GetName() == "" || object.GetKind() != "Namespace" && object.GetNamespace() == "" {
				t.Errorf("%s: an object lacks kind, name or namespace: %v", entry.Name(), object.Object)
			}
		}
	}
}

// TestManifestsOfForms: the forms of a scenario share no object, and the services of the IPv6 form have no other family.
func TestManifestsOfForms(t *testing.T) {
	for _, s := range ipv6Forms() {
		seen := map[string]bool{}
		for _, family := range []Family{"", IPv6} {
			raw, err := Manifest(s.manifest, family)
			if err != nil {
				t.Fatal(err)
			}
			objects, err := harness.Objects(raw)
			if err != nil {
				t.Fatal(err)
			}
			for _, object := range objects {
				key := object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
				if seen[key] {
					t.Errorf("%s: both forms have %s", s.manifest, key)
				}
				seen[key] = true
				families, _, _ := unstructured.NestedStringSlice(object.Object, "spec", "ipFamilies")
				if object.GetKind() == "Service" && family == IPv6 && !slices.Equal(families, []string{"IPv6"}) {
					t.Errorf("%s: %s has families %v", s.manifest, key, families)
				}
			}
		}
	}
}
