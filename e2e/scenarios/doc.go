// Package scenarios holds the stories that a real cluster must pass. Each is a value beside its manifest; what is expected is
// data; waiting has one meaning (harness.Await). Every story is told from pods on both nodes, to the same node and across.
//
// The tests need root and the cluster of `make cluster-up` with the images of `make load`; without they are skipped and say
// what is missing, or fail if AMBIT_REQUIRE_CLUSTER is set. They install the mesh if there is none, and the last one removes it.
package scenarios

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"
)

//go:embed *.yaml
var manifests embed.FS

// Manifest renders a scenario's manifest. The templates that it may use are in parts.yaml.
func Manifest(name string) ([]byte, error) {
	t := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{"args": args})
	t, err := t.ParseFS(manifests, "parts.yaml", name)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.ExecuteTemplate(&out, name, nil); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// args makes a map of its arguments, key after value, for a template's dot.
func args(pairs ...string) (map[string]string, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("args: %q has no value", pairs[len(pairs)-1])
	}
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m, nil
}
