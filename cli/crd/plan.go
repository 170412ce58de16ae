// Package crd brings custom resource definitions into a cluster without harm to those who have some there already: it
// creates what is missing, updates what is older, and leaves alone, with the reason, what is newer. Planning is pure.
package crd

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// Annotations with which the Gateway API marks its definitions.
const (
	bundleVersion = "gateway.networking.k8s.io/bundle-version"
	bundleChannel = "gateway.networking.k8s.io/channel"
	gatewayGroup  = "gateway.networking.k8s.io"
)

// Definition is a custom resource definition.
type Definition = apiextensions.CustomResourceDefinition

// Parse reads definitions, each the YAML of one.
func Parse(texts [][]byte) ([]*Definition, error) {
	defs := make([]*Definition, len(texts))
	for i, text := range texts {
		defs[i] = &Definition{}
		if err := yaml.UnmarshalStrict(text, defs[i]); err != nil {
			return nil, fmt.Errorf("read a custom resource definition: %w", err)
		}
	}
	return defs, nil
}

// Step is what is to be done with one definition.
type Step struct {
	Name   string
	Action Action
	// Reason says in words why a definition is left alone; else it is empty.
	Reason string
}

// Action is what is done with a definition.
type Action string

const (
	Create    Action = "create"
	Update    Action = "update"
	LeaveBe   Action = "leave alone"
	Unchanged Action = "unchanged"
	Delete    Action = "delete"
)

// Plan decides for each of ours, given what the cluster has by name. The Gateway API's definitions go together: where one
// of them is newer or of another channel, the bundle belongs to somebody else, who must not get a mixture.
func Plan(ours []*Definition, theirs map[string]*Definition) []Step {
	bundle := foreignBundle(ours, theirs)
	steps := make([]Step, 0, len(ours))
	for _, our := range ours {
		step := Step{Name: our.Name, Action: Update}
		their := theirs[our.Name]
		switch {
		case our.Spec.Group == gatewayGroup && bundle != "":
			step.Action, step.Reason = LeaveBe, bundle
			if their == nil {
				step.Reason += ", which has no such kind"
			}
		case their == nil:
			step.Action = Create
		default:
			if unknown := unknownFields(our, their); len(unknown) > 0 {
				step.Action, step.Reason = LeaveBe, "it is newer: it has "+sample(unknown)
			}
		}
		steps = append(steps, step)
	}
	return steps
}

// foreignBundle returns why the Gateway API's definitions of the cluster are not to be touched, or "".
func foreignBundle(ours []*Definition, theirs map[string]*Definition) string {
	for _, our := range ours {
		their := theirs[our.Name]
		if our.Spec.Group != gatewayGroup || their == nil {
			continue
		}
		has, ships := their.Annotations[bundleVersion], our.Annotations[bundleVersion]
		if channel := their.Annotations[bundleChannel]; channel != "" && channel != our.Annotations[bundleChannel] {
			return fmt.Sprintf("Gateway API %s is there in its %s channel", has, channel)
		}
		if semver.Compare(has, ships) > 0 {
			return fmt.Sprintf("Gateway API %s is there, which is newer than %s", has, ships)
		}
	}
	return ""
}

// unknownFields lists the served versions and schema fields that theirs has and ours lacks, sorted.
func unknownFields(ours, theirs *Definition) []string {
	known := fields(ours)
	var unknown []string
	for path := range fields(theirs) {
		if !known[path] {
			unknown = append(unknown, path)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// fields returns the versions of a definition and the paths of all fields of their schemas, such as "v1.spec.rules.from".
// Items of lists and values of maps are reached without an element of their own.
func fields(d *Definition) map[string]bool {
	paths := map[string]bool{}
	for _, version := range d.Spec.Versions {
		paths[version.Name] = true
		if version.Schema != nil && version.Schema.OpenAPIV3Schema != nil {
			walk(version.Name, version.Schema.OpenAPIV3Schema, paths)
		}
	}
	return paths
}

func walk(path string, schema *apiextensions.JSONSchemaProps, paths map[string]bool) {
	for name, property := range schema.Properties {
		below := path + "." + name
		paths[below] = true
		walk(below, &property, paths)
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		walk(path, schema.Items.Schema, paths)
	}
	if schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil {
		walk(path, schema.AdditionalProperties.Schema, paths)
	}
}

// sample names the first few of a sorted list.
func sample(paths []string) string {
	const few = 3
	if len(paths) <= few {
		return strings.Join(paths, ", ")
	}
	return fmt.Sprintf("%s and %d more fields", strings.Join(paths[:few], ", "), len(paths)-few)
}
