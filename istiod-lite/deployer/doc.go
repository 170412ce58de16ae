// Package deployer makes what a waypoint needs to run, in the namespace of its Gateway: a ServiceAccount, a Service, a Deployment and
// a PodDisruptionBudget, all of the Gateway's name and owned by it, so that they go with it. What they should be is a pure function
// of the Gateway and of settings; it is applied server-side, so that fields which others own stay theirs. An object of that name
// that was not made for the Gateway is never touched, however it came there: what is written is created, or applied to the very object
// that was looked at. One replica writes at a time.
package deployer
