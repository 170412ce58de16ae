package v1alpha1_test

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// TestDefinition: the definition has the fields of the Go types, under the names that these say, and no others.
func TestDefinition(t *testing.T) {
	text, err := os.ReadFile(v1alpha1.Definition)
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &crd); err != nil {
		t.Fatal(err)
	}
	got := []string{crd.Name, crd.Spec.Group, crd.Spec.Names.Plural, crd.Spec.Names.Kind, crd.Spec.Names.ListKind, crd.Spec.Versions[0].Name}
	want := []string{v1alpha1.Resource + "." + v1alpha1.Group, v1alpha1.Group, v1alpha1.Resource, v1alpha1.Kind, v1alpha1.Kind + "List", v1alpha1.Version}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	schema := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	compare(t, "spec", reflect.TypeFor[v1alpha1.WaypointPolicySpec](), schema.Properties["spec"])
	compare(t, "status", reflect.TypeFor[v1alpha1.WaypointPolicy]().Field(3).Type, schema.Properties["status"])
}

// compare compares a type with its schema, fields of fields included.
func compare(t *testing.T, at string, of reflect.Type, schema apiextensionsv1.JSONSchemaProps) {
	t.Helper()
	for of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	if of.Kind() == reflect.Slice {
		if schema.Type != "array" {
			t.Fatalf("%s: %s, not array", at, schema.Type)
		}
		compare(t, at+"[]", of.Elem(), *schema.Items.Schema)
		return
	}
	if schema.Type != "object" {
		kinds := map[string][]reflect.Kind{"string": {reflect.String, reflect.Struct}, "integer": {reflect.Int32, reflect.Int64}}
		if !slices.Contains(kinds[schema.Type], of.Kind()) { // a struct: the time of a condition
			t.Errorf("%s: %s for a Go %s", at, schema.Type, of)
		}
		return
	}
	fields := map[string]reflect.Type{}
	var gather func(reflect.Type)
	gather = func(of reflect.Type) {
		for f := range of.Fields() {
			name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			if rest == "inline" {
				gather(f.Type)
				continue
			}
			fields[name] = f.Type
		}
	}
	gather(of)
	for name, typ := range fields {
		property, ok := schema.Properties[name]
		if !ok {
			t.Errorf("%s.%s: not in the definition", at, name)
			continue
		}
		compare(t, at+"."+name, typ, property)
	}
	for name := range schema.Properties {
		if fields[name] == nil {
			t.Errorf("%s.%s: not in the Go type", at, name)
		}
	}
}
