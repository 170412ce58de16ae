package scenarios

import (
	"testing"

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
		raw, err := Manifest(entry.Name())
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
