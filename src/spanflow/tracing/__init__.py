"""Spans, their ids and attributes, metrics, content capture, and the set-up of OpenTelemetry."""
