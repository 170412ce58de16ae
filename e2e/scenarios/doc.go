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
	"strings"
	"text/template"
)

//go:embed *.yaml
var manifests embed.FS

// Family is the address family of a form of a scenario. The zero value is the form with what the cluster has: services of both
// families on a cluster of both, else of its only one.
type Family string

// IPv6 is the form in which everything goes by IPv6, also on a cluster that has both families and IPv4 first.
const IPv6 Family = "IPv6"

// Namespace is the name of a namespace in the form: forms may be played side by side.
func (f Family) Namespace(name string) string {
	if f == "" {
		return name
	}
	return name + "-" + strings.ToLower(string(f))
}

// service is what a Service's spec says of families.
func (f Family) service() string {
	if f == "" {
		return "ipFamilyPolicy: PreferDualStack"
	}
	return fmt.Sprintf("ipFamilies: [%s]", f)
}

// Manifest renders a form of a scenario's manifest. The templates that it may use are in parts.yaml; ns names a namespace of a
// scenario that has forms.
func Manifest(name string, family Family) ([]byte, error) {
	t := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{"args": args, "ns": family.Namespace, "families": family.service})
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
